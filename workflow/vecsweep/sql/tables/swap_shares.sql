-- Whose answer is on top after an exchange, and how many of the prompts apply the function there.
SELECT model, task, sublayer, layer, (layer + 1) / layers AS depth, pairs, prompts,
       own, own_low, own_high, others, others_low, others_high,
       own_dropped, own_dropped_low, own_dropped_high,
       coalesce(function_prompts, 0) AS function_prompts,
       coalesce(function_prompts_by_ffn, 0) AS function_prompts_by_ffn
FROM swap_bands
JOIN models USING (model)
LEFT JOIN (
    SELECT model, task, function_layer AS layer, count(*) AS function_prompts,
           count(*) FILTER (function_site IN ('ffn', 'both')) AS function_prompts_by_ffn
    FROM (SELECT DISTINCT model, task, prompt_id, function_layer, function_site FROM swaps)
    GROUP BY ALL
) USING (model, task, layer)
WHERE layer IS NOT NULL
ORDER BY ALL
