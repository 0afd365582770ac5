-- Every method at the setting that was best for it on dev, on the same test prompts; other donors and
-- the parts of the o-vector at its setting. Settings: how many were tried on dev. Difference: mean
-- reciprocal rank after, minus the o-vector's. Share: of the o-vector's rise, where that is above 0.
WITH tried AS (
    SELECT model, ovector_task, method,
           count(DISTINCT (source_layer, start_layer, end_layer, mode, scale)) AS settings
    FROM interventions
    WHERE split = 'dev'
    GROUP BY ALL
)
SELECT e.model, e.ovector_task AS task, e.domain, e.task AS prompts_of, e.method, settings,
       e.source_layer, e.start_layer, e.end_layer, e.mode, e.scale, e.prompts, e.vectors,
       e.reciprocal_rank_before, e.reciprocal_rank_after,
       e.reciprocal_rank_after_low, e.reciprocal_rank_after_high,
       e.difference, e.difference_low, e.difference_high, e.p, e.p_holm,
       CASE WHEN o.rise_low > 0 THEN e.rise / o.rise END AS share_of_lift,
       e.top_1, e.top_1_low, e.top_1_high, e.top_5, e.top_10,
       e.among_before, e.among_after, e.among_after_low, e.among_after_high, e.among_chance,
       e.own_lift, e.own_lift_low, e.own_lift_high,
       e.others_lift, e.others_lift_low, e.others_lift_high, e.transfer,
       e.argument_before, e.no_effect, e.argument_stays, e.other_answer, e.other
FROM corrected_effects AS e
LEFT JOIN tried USING (model, ovector_task, method)
LEFT JOIN effects AS o
    ON (e.model, e.ovector_task, e.task, e.domain, 'o-vector')
     = (o.model, o.ovector_task, o.task, o.domain, o.method)
ORDER BY ALL
