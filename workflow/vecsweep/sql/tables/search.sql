-- The search on dev: every method, source layer, start layer, extent, mode and scale.
SELECT model, ovector_task AS task, method, source_layer, start_layer, end_layer, mode, scale,
       count(*) AS prompts,
       avg(reciprocal_rank_before) AS reciprocal_rank_before,
       avg(reciprocal_rank_after) AS reciprocal_rank_after,
       avg(top_1) AS top_1
FROM outcomes
WHERE split = 'dev'
GROUP BY ALL
ORDER BY ALL
