-- One row a model and task: the setting chosen on dev, and what it does on test. Empty where no
-- prompt could give an o-vector.
SELECT grid.model, grid.task, kind, c.donor, c.source_layer, c.start_layer, c.end_layer, c.mode,
       c.scale, domain, units AS prompts,
       reciprocal_rank_before, reciprocal_rank_after,
       reciprocal_rank_after_low, reciprocal_rank_after_high,
       reciprocal_rank_after / reciprocal_rank_before AS lift,
       top_1_before, top_1, top_1_low, top_1_high, top_5, top_10,
       no_effect, argument_stays, other_answer, other,
       coalesce(eligible, 0) AS eligible_donors
FROM (SELECT model, task, kind FROM models CROSS JOIN tasks WHERE injected) AS grid
LEFT JOIN chosen AS c USING (model, task)
LEFT JOIN (
    SELECT model, task, count(*) AS eligible
    FROM stages JOIN prompts USING (model, task, prompt_set, prompt_id)
    WHERE prompt_set = 'abstractive' AND function_site IN ('ffn', 'both') AND NOT out_of_domain
    GROUP BY ALL
) USING (model, task)
LEFT JOIN effects AS e
    ON e.chosen AND (e.model, e.ovector_task, e.control) = (grid.model, grid.task, 'o-vector')
ORDER BY ALL
