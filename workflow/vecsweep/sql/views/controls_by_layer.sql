-- Each prompt under each control from every start layer, repeats averaged; only the prompts that all
-- start layers share: at the chosen one there are more.
WITH everywhere AS (
    SELECT DISTINCT model, ovector_task, prompt_id
    FROM outcomes
    WHERE split = 'test' AND domain = 'in' AND NOT chosen
)
SELECT model, ovector_task AS task, control, start_layer, prompt_id,
       avg(reciprocal_rank_before) AS before, avg(reciprocal_rank_after) AS after
FROM outcomes JOIN everywhere USING (model, ovector_task, prompt_id)
WHERE split = 'test' AND domain = 'in'
GROUP BY ALL
ORDER BY ALL
