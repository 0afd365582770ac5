-- The o-vector's best mean reciprocal rank on dev for each source and start layer.
SELECT model, task, source_layer, start_layer, prompts, max(reciprocal_rank_after) AS value
FROM search
WHERE method = 'o-vector'
GROUP BY ALL
