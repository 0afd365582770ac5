-- One row a model, task and set of test prompts: the o-vector at the setting chosen on dev, and the strongest other
-- thing that was put in its place, parts of it included. Empty where no prompt could give a vector.
SELECT grid.model, grid.task, kind, donor, c.source_layer, c.start_layer, c.end_layer, c.mode,
       c.scale, e.domain, e.task AS prompts_of, e.prompts,
       e.reciprocal_rank_before, e.reciprocal_rank_after,
       e.reciprocal_rank_after_low, e.reciprocal_rank_after_high,
       e.rise, e.rise_low, e.rise_high,
       e.top_1_before, e.top_1, e.top_1_low, e.top_1_high, e.top_5, e.top_10,
       e.among_after, e.among_chance, e.transfer,
       e.argument_before, e.no_effect, e.argument_stays, e.other_answer, e.other,
       s.method AS strongest, s.reciprocal_rank_after AS strongest_after,
       s.difference AS strongest_difference, s.difference_low AS strongest_difference_low,
       s.difference_high AS strongest_difference_high, s.p_holm AS strongest_p_holm,
       coalesce(flips, 0) AS train_flips, coalesce(correct, 0) AS correct
FROM (SELECT model, task, kind FROM models CROSS JOIN tasks WHERE injected) AS grid
LEFT JOIN (FROM chosen WHERE method = 'o-vector') AS c USING (model, task)
LEFT JOIN (
    SELECT model, task, count(*) FILTER (flip_layer IS NOT NULL AND split = 'train') AS flips,
           count(*) FILTER (pattern != 'incorrect' AND NOT out_of_domain) AS correct
    FROM stages JOIN prompts USING (model, task, prompt_set, prompt_id)
    WHERE prompt_set = 'abstractive'
    GROUP BY ALL
) USING (model, task)
LEFT JOIN (FROM effects WHERE method = 'o-vector') AS e
    ON (e.model, e.ovector_task) = (grid.model, grid.task)
LEFT JOIN strongest AS s
    ON (s.model, s.ovector_task, s.task, s.domain) = (e.model, e.ovector_task, e.task, e.domain)
ORDER BY ALL
