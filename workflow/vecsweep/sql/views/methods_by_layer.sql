-- Dev prompts under each method from every start layer, at the best of its other settings there.
WITH cells AS (
    SELECT * FROM search
    QUALIFY row_number() OVER (
        PARTITION BY model, task, method, start_layer
        ORDER BY reciprocal_rank_after DESC, source_layer, end_layer DESC, mode DESC, scale
    ) = 1
)
SELECT o.model, o.ovector_task AS task, o.method, o.start_layer, prompt_id,
       o.reciprocal_rank_before AS before, o.reciprocal_rank_after AS after
FROM outcomes AS o
JOIN cells AS c
    ON (o.model, o.ovector_task, o.method, o.start_layer, o.end_layer, o.mode, o.scale)
     = (c.model, c.task, c.method, c.start_layer, c.end_layer, c.mode, c.scale)
    AND o.source_layer IS NOT DISTINCT FROM c.source_layer
WHERE split = 'dev'
ORDER BY ALL
