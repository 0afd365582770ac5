-- Function or fact: what prompts exchange at their own function layer, with others whose answer the same
-- layer's FFN put on top. Idle: the answer stands without that part too, which then says nothing of it.
SELECT model, task, sublayer, layers, pairs, prompts,
       own, own_low, own_high, others, others_low, others_high,
       own_dropped, own_dropped_low, own_dropped_high,
       CASE WHEN prompts < 6 THEN 'too few'
            WHEN others_low > 0.5 THEN 'fact'
            WHEN own_dropped > 0.5 THEN 'idle'
            WHEN own_low > 0.5 THEN 'function'
            ELSE 'neither' END AS verdict
FROM swap_bands
JOIN (
    SELECT model, task, string_agg(DISTINCT function_layer, ', ' ORDER BY function_layer) AS layers
    FROM (
        SELECT model, task, function_layer
        FROM swaps
        WHERE function_site IN ('ffn', 'both')
        GROUP BY ALL
        HAVING count(DISTINCT prompt_id) > 1
    )
    GROUP BY ALL
) USING (model, task)
WHERE layer IS NULL AND sublayer != 'state'  -- a state after the function has its answer, whatever made it
ORDER BY ALL
