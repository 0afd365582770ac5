-- The best mean reciprocal rank on dev for each source and start layer.
SELECT model, task, source_layer, start_layer, prompts, max(reciprocal_rank_after) AS value
FROM search
GROUP BY ALL
