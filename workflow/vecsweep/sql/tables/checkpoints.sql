-- Relations over training: the models of a series that has several, by step, the last without one
-- at the end. In-domain abstractive prompts; the o-vector at its own best setting on test.
WITH several AS (
    SELECT model, series, step, parameters
    FROM models
    QUALIFY count(*) OVER (PARTITION BY series) > 1
)
SELECT series, step, s.model, n.task, n.prompts, n.correct, n.correct_low, n.correct_high,
       n.chance, n.argument_function, n.argument_function_low, n.argument_function_high,
       c.depth, c.low AS depth_low, c.high AS depth_high, c.formed,
       e.prompts AS test_prompts, e.reciprocal_rank_before, e.reciprocal_rank_after,
       e.rise, e.rise_low, e.rise_high,
       e.among_before, e.among_after, e.among_after_low, e.among_after_high, e.among_chance,
       e.transfer
FROM several AS s
JOIN (FROM pattern_shares WHERE prompt_set = 'abstractive') AS n USING (model)
LEFT JOIN (FROM crossings WHERE prompt_set = 'abstractive' AND has_formed(formed)) AS c
    ON (c.model, c.task) = (s.model, n.task)
LEFT JOIN (FROM chosen_effects WHERE domain = 'in') AS e
    ON (e.model, e.ovector_task) = (s.model, n.task)
ORDER BY s.parameters DESC, series, step NULLS LAST, n.task
