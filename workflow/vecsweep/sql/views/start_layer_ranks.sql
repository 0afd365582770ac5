-- Ranks on dev under the chosen vector, mode and scale from every start layer, a row a prompt and
-- target; ranks count from 1, the top token.
SELECT i.model, c.task, i.prompt_id, i.start_layer, target, rank_before + 1 AS before,
       rank_after + 1 AS after, token
FROM interventions AS i
JOIN chosen AS c
    ON (i.model, i.ovector_task, i.source_layer, i.mode, i.scale)
     = (c.model, c.task, c.source_layer, c.mode, c.scale)
    AND i.donor IS NOT DISTINCT FROM c.donor
LEFT JOIN vocabularies AS v ON (i.model, i.top_after) = (v.model, v.token_id)
WHERE split = 'dev' AND control = 'o-vector'
