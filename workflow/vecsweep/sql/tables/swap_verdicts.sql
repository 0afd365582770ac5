-- Function or fact, at the layer where most of the prompts apply the function (the first of equals).
SELECT model, task, sublayer, layer, function_prompts, function_prompts_by_ffn, pairs, prompts,
       own, own_low, own_high, others, others_low, others_high,
       CASE WHEN prompts < 6 THEN 'too few'
            WHEN own_low > 0.5 THEN 'function'
            WHEN others_low > 0.5 THEN 'fact'
            ELSE 'neither' END AS verdict
FROM swap_shares
WHERE sublayer != 'state'  -- a state after the function has its answer, whatever made it
QUALIFY row_number() OVER (
    PARTITION BY model, task, sublayer ORDER BY function_prompts DESC, layer
) = 1
ORDER BY ALL
