-- Each prompt under the largest parts of an o-vector, and under the whole. The mean of the donors has
-- no neurons: where it was chosen, parts and whole are of one donor.
SELECT model, ovector_task AS task, split_part(p.control, '_', 1) AS basis,
       split_part(p.control, '_', 2) AS k, p.reciprocal_rank_before AS before,
       p.reciprocal_rank_after AS after, whole.reciprocal_rank_after AS whole
FROM outcomes AS p
JOIN outcomes AS whole
    USING (model, ovector_task, task, domain, prompt_id, donor, source_layer)
WHERE p.chosen AND whole.chosen AND domain = 'in' AND whole.control IN ('o-vector', 'donor')
  AND (p.control LIKE 'neurons\_%' ESCAPE '\' OR p.control LIKE 'directions\_%' ESCAPE '\')
ORDER BY model, task, basis, k, prompt_id
