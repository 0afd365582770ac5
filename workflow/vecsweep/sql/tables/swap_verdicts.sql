-- Function or fact, at the layer whose FFN puts the answer on top in most of the prompts (the first of
-- equals), of those prompts alone. Idle: the answer stands without that part too, which then says
-- nothing of it.
SELECT model, task, sublayer, layer, pairs, prompts,
       own, own_low, own_high, others, others_low, others_high,
       own_dropped, own_dropped_low, own_dropped_high,
       CASE WHEN prompts < 6 THEN 'too few'
            WHEN others_low > 0.5 THEN 'fact'
            WHEN own_dropped > 0.5 THEN 'idle'
            WHEN own_low > 0.5 THEN 'function'
            ELSE 'neither' END AS verdict
FROM swap_bands
WHERE subset = 'applied' AND sublayer != 'state'  -- a state after the function has its answer, whatever made it
QUALIFY row_number() OVER (PARTITION BY model, task, sublayer ORDER BY prompts DESC, layer) = 1
ORDER BY ALL
