-- Every number of the paper's sections on o-vectors, stages, interventions and ablations beside
-- this sweep's: a row each number and each of our models; our value is null where the sweep does
-- not have it. The paper's ranks come from the mean reciprocal rank (rank = 1 / mean), so do ours.
-- Where the paper says yes (1) or no (0), or gives an order, so does our value.
WITH results AS (
    SELECT c.source_layer, c.task AS asked, e.*
    FROM effects AS e
    JOIN chosen AS c ON (e.model, e.ovector_task) = (c.model, c.task)
    WHERE e.chosen AND control = 'o-vector'
),
-- The settings, and what the interventions did.
of_settings AS (
    SELECT model, task, 'in' AS domain, prompts, quantity, value, NULL AS low, NULL AS high,
           format('depth {:.2f}', (value + 1) / layers) AS note
    FROM (UNPIVOT (SELECT model, asked AS task, units AS prompts, source_layer::DOUBLE AS "source layer",
                          start_layer::DOUBLE AS "start layer", end_layer::DOUBLE AS "end layer"
                   FROM results WHERE domain = 'in')
          ON "source layer", "start layer", "end layer" INTO NAME quantity VALUE value)
    JOIN models USING (model)
),
of_ranks AS (
    SELECT model, asked AS task, domain, units AS prompts,
           unnest(['rank before', 'rank after', 'top-1 share', 'no-effect share',
                   'reciprocal rank rises']) AS quantity,
           unnest([1 / reciprocal_rank_before, 1 / reciprocal_rank_after, top_1, no_effect,
                   (reciprocal_rank_after > reciprocal_rank_before)::INT]) AS value,
           unnest([1 / reciprocal_rank_before_high, 1 / reciprocal_rank_after_high, top_1_low,
                   no_effect_low, NULL]) AS low,
           unnest([1 / reciprocal_rank_before_low, 1 / reciprocal_rank_after_low, top_1_high,
                   no_effect_high, NULL]) AS high,
           unnest(['1 / mean reciprocal rank', '1 / mean reciprocal rank', '', '',
                   format('mean {:.3f} -> {:.3f}', reciprocal_rank_before, reciprocal_rank_after)
                  ]) AS note
    FROM results
),
-- The X: the answer overtakes for good an argument that had formed.
crossed AS (SELECT * FROM crossings),
of_stages AS (
    SELECT model, task, 'in' AS domain, prompts, 'depth of the crossover' AS quantity,
           if(has_formed(formed), depth, NULL) AS value, if(has_formed(formed), low, NULL) AS low,
           if(has_formed(formed), high, NULL) AS high,
           if(has_formed(formed), '', 'no argument formed before an overtaking answer') AS note
    FROM crossed WHERE prompt_set = 'abstractive'
    UNION ALL
    SELECT model, task, 'in', prompts, 'X, ' || prompt_set || ' prompts',
           (has_formed(coalesce(formed, 0)))::INT, NULL, NULL,
           'mean reciprocal rank of the argument before the crossover '
               || coalesce(format('{:.2f}', formed), '(no crossover)')
    FROM crossed
),
-- Errors and tokenization: the mean over the tasks, each with one voice.
of_errors AS (
    SELECT model, 'all' AS task, 'in' AS domain, prompts, quantity,
           rank() OVER (PARTITION BY model ORDER BY share DESC) AS value, NULL AS low, NULL AS high,
           format('share of all prompts {:.2f}, mean of {} tasks', share, tasks) AS note
    FROM (UNPIVOT (SELECT model, sum(units)::BIGINT AS prompts, count(*) AS tasks,
                          avg(argument_stays) AS "place among errors: argument stays",
                          avg(other_answer) AS "place among errors: other answer",
                          avg(other) AS "place among errors: other"
                   FROM results WHERE domain = 'in' GROUP BY model)
          ON COLUMNS('place') INTO NAME quantity VALUE share)
),
of_letters AS (
    SELECT o.model, reciprocal_rank_after, answer_length > 1 AS several,
           first_token_letters = 1 AS one_letter
    FROM outcomes AS o
    JOIN prompts AS p
        ON (o.model, o.task, o.prompt_id, 'novel') = (p.model, p.task, p.prompt_id, p.prompt_set)
    WHERE chosen AND control = 'o-vector' AND domain = 'in'
),
of_tokens AS (
    SELECT model, 'all' AS task, 'in' AS domain, prompts, quantity,
           (these < others)::INT AS value, NULL AS low, NULL AS high,
           format('mean reciprocal rank after {:.3f} against {:.3f}', these, others) AS note
    FROM (
        SELECT model, count(*) AS prompts, 'answers of several tokens are worse' AS quantity,
               avg(reciprocal_rank_after) FILTER (several) AS these,
               avg(reciprocal_rank_after) FILTER (NOT several) AS others
        FROM of_letters GROUP BY model
        UNION ALL
        SELECT model, count(*), 'one-letter first tokens are worse',
               avg(reciprocal_rank_after) FILTER (one_letter),
               avg(reciprocal_rank_after) FILTER (NOT one_letter)
        FROM of_letters GROUP BY model
    )
    WHERE these IS NOT NULL AND others IS NOT NULL
),
-- Two sixths of the layers, from the top down: 24 of BLOOM's 70. Intervals of changes: paired, normal.
removed AS (
    SELECT model, task, prompt_set, prompt_id, after.removed_layers, after.correct::INT AS correct,
           after.correct::INT - before.correct::INT AS change
    FROM ablations AS after
    JOIN ablations AS before
        USING (model, task, prompt_set, sublayer, value, "order", prompt_id)
    WHERE after.step = 2 AND before.step = 0
      AND (sublayer, value, "order") = ('ffn', 'zero', 'top')
),
of_ablations AS (
    SELECT model, task, 'in' AS domain, count(*) AS prompts,
           unnest(['accuracy change, ' || prompt_set, 'accuracy left, ' || prompt_set]) AS quantity,
           unnest([avg(change), avg(correct)]) AS value,
           unnest([avg(change) - 1.96 * stddev_samp(change) / sqrt(count(*)),
                   wilson_low(avg(correct), count(*))]) AS low,
           unnest([avg(change) + 1.96 * stddev_samp(change) / sqrt(count(*)),
                   wilson_high(avg(correct), count(*))]) AS high,
           format('{} FFNs removed; accuracy {:.2f} before, {:.2f} after',
                  any_value(removed_layers), avg(correct) - avg(change), avg(correct)) AS note
    FROM removed
    GROUP BY model, task, prompt_set
),
ours AS (
    FROM of_settings UNION ALL BY NAME FROM of_ranks UNION ALL BY NAME FROM of_stages
    UNION ALL BY NAME FROM of_errors UNION ALL BY NAME FROM of_tokens
    UNION ALL BY NAME FROM of_ablations
)
SELECT quantity, paper_model, task, domain, paper_value, source,
       model AS our_model, value AS our_value, low AS our_low, high AS our_high, prompts,
       concat_ws('; ', 'paper: ' || nullif(paper_note, ''), 'ours: ' || nullif(note, ''),
                 CASE WHEN value IS NULL AND note IS NULL THEN 'not in this sweep' END) AS note
FROM paper CROSS JOIN (SELECT model FROM models) LEFT JOIN ours USING (model, quantity, task, domain)
ORDER BY source, paper_model, task, domain, quantity, our_model
