-- Each prompt under the largest parts of the o-vector, and under the whole.
SELECT model, ovector_task AS task, split_part(p.method, '_', 1) AS basis,
       split_part(p.method, '_', 2) AS k, p.reciprocal_rank_before AS before,
       p.reciprocal_rank_after AS after, whole.reciprocal_rank_after AS whole
FROM outcomes AS p
JOIN outcomes AS whole USING (model, ovector_task, task, domain, split, prompt_id)
WHERE split = 'test' AND domain = 'in' AND whole.method = 'o-vector'
  AND (starts_with(p.method, 'neurons_') OR starts_with(p.method, 'directions_'))
ORDER BY model, task, basis, k, prompt_id
