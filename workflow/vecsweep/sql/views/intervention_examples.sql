-- The largest models at most; for each a dev prompt (dev has every start layer) of capitals where
-- there is one, whose answer the o-vector's chosen setting ranks best, with words of few tokens.
SELECT * FROM (
    SELECT c.*, i.prompt_id, p.argument, p.answer, p.text, layers, parameters,
           row_number() OVER (PARTITION BY c.model ORDER BY
               c.task != 'capitals', c.task, rank_after, p.argument_length + p.answer_length,
               i.prompt_id) AS place
    FROM chosen AS c
    JOIN interventions AS i
        ON (c.model, c.task, c.method, c.source_layer, c.start_layer, c.end_layer, c.mode, c.scale)
         = (i.model, i.ovector_task, i.method, i.source_layer, i.start_layer, i.end_layer, i.mode,
            i.scale)
    JOIN prompts AS p
        ON (i.model, i.task, i.prompt_id, 'novel') = (p.model, p.task, p.prompt_id, p.prompt_set)
    JOIN models AS m ON c.model = m.model
    WHERE i.split = 'dev' AND c.method = 'o-vector' AND target = 'answer'
)
WHERE place = 1
QUALIFY row_number() OVER (ORDER BY parameters DESC, model) <= 4
ORDER BY parameters, model
