-- The chosen o-vector beside its controls, its parts and the other donors, on test; units are
-- prompts, but donors in the rows of control `donor`. Share: of the o-vector's lift.
SELECT e.model, e.ovector_task AS task, e.domain, e.control, e.mode, e.units,
       e.reciprocal_rank_before, e.reciprocal_rank_after,
       e.reciprocal_rank_after_low, e.reciprocal_rank_after_high,
       (e.reciprocal_rank_after - e.reciprocal_rank_before)
           / nullif(o.reciprocal_rank_after - o.reciprocal_rank_before, 0) AS share_of_lift,
       e.top_1, e.top_1_low, e.top_1_high, e.top_5, e.top_10,
       e.no_effect, e.argument_stays, e.other_answer, e.other
FROM effects AS e
JOIN effects AS o
    ON (e.model, e.ovector_task, e.domain, 'o-vector')
     = (o.model, o.ovector_task, o.domain, o.control)
WHERE e.chosen AND o.chosen
ORDER BY ALL
