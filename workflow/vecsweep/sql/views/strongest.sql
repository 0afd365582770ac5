-- Of all that was put in the o-vector's place, what has the largest mean reciprocal rank after. Not the
-- whole vector once more, nor what was not tried on dev but is another draw of it.
SELECT * FROM corrected_effects
WHERE method NOT IN ('o-vector', 'donor', 'neurons_all', 'directions_all')
QUALIFY row_number() OVER (
    PARTITION BY model, ovector_task, task, domain ORDER BY reciprocal_rank_after DESC, method
) = 1
