-- The chosen o-vector beside its controls, its parts and the other donors, on test.
SELECT e.model, e.ovector_task AS task, e.domain, e.control, e.mode, units,
       reciprocal_rank_before, reciprocal_rank_after,
       reciprocal_rank_after_low, reciprocal_rank_after_high,
       top_1, top_1_low, top_1_high, top_5, top_10, no_effect, argument_stays, other_answer, other
FROM effects AS e JOIN chosen AS c ON (e.model, e.ovector_task, e.start_layer) = (c.model, c.task, c.start_layer)
ORDER BY ALL
