-- Ranks on dev under the o-vector at its chosen source layer, extent, mode and scale from every start
-- layer, a row a prompt and target; ranks count from 1, the top token.
SELECT i.model, c.task, i.prompt_id, i.start_layer, target, rank_before + 1 AS before,
       rank_after + 1 AS after, shown(token, top_after) AS token
FROM interventions AS i
JOIN chosen AS c
    ON (i.model, i.ovector_task, i.method, i.source_layer, i.mode, i.scale)
     = (c.model, c.task, c.method, c.source_layer, c.mode, c.scale)
    AND i.end_layer = if(c.start_layer = c.end_layer, i.start_layer, c.end_layer)
LEFT JOIN vocabularies AS v ON (i.model, i.top_after) = (v.model, v.token_id)
WHERE split = 'dev' AND c.method = 'o-vector'
