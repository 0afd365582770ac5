-- Every number of the paper's sections on o-vectors, stages, interventions and ablations beside
-- this sweep's: a row each number and each of our models; our value is null where the sweep does
-- not have it. The paper's ranks come from the mean reciprocal rank (rank = 1 / mean), so do ours.
-- Where the paper says yes (1) or no (0), or gives an order, so does our value: only with enough
-- prompts, and where the interval of the number behind it does not hold both; else it is null, and the
-- note says so.
WITH results AS (
    SELECT ovector_task AS asked, *,
           if(start_layer = end_layer, format('{} at layer {}', mode, start_layer),
              format('{} over layers {}-{}', mode, start_layer, end_layer)) AS setting
    FROM effects
    WHERE method = 'o-vector'
),
-- The settings, and what the interventions did.
of_settings AS (
    SELECT model, task, 'in' AS domain, prompts, quantity, value, NULL AS low, NULL AS high,
           format('depth {:.2f}', (value + 1) / layers) AS note
    FROM (UNPIVOT (SELECT model, asked AS task, prompts, source_layer::DOUBLE AS "source layer",
                          start_layer::DOUBLE AS "start layer", end_layer::DOUBLE AS "end layer"
                   FROM results WHERE domain = 'in')
          ON "source layer", "start layer", "end layer" INTO NAME quantity VALUE value)
    JOIN models USING (model)
),
of_ranks AS (
    SELECT model, asked AS task, domain, prompts,
           unnest(['rank before', 'rank after', 'top-1 share', 'no-effect share',
                   'reciprocal rank rises']) AS quantity,
           unnest([1 / reciprocal_rank_before, 1 / reciprocal_rank_after, top_1, no_effect,
                   yes(prompts, rise_low, rise_high, 0)]) AS value,
           unnest([1 / reciprocal_rank_before_high, 1 / reciprocal_rank_after_high, top_1_low,
                   no_effect_low, rise_low]) AS low,
           unnest([1 / reciprocal_rank_before_low, 1 / reciprocal_rank_after_low, top_1_high,
                   no_effect_high, rise_high]) AS high,
           unnest(['1 / mean reciprocal rank', '1 / mean reciprocal rank; ' || setting, setting,
                   format('of the {:.0f} prompts whose argument was on top before',
                          prompts * argument_before),
                   format('mean {:.3f} -> {:.3f}; interval: of the rise; ',
                          reciprocal_rank_before, reciprocal_rank_after) || undecided(
                          prompts, rise_low, rise_high, 0)]) AS note
    FROM results
),
-- The X: the answer overtakes for good an argument that had formed.
crossed AS (SELECT * FROM crossings),
of_stages AS (
    SELECT model, task, 'in' AS domain, prompts, 'depth of the crossover' AS quantity,
           if(formed_low >= formed_at(), depth, NULL) AS value,
           if(formed_low >= formed_at(), low, NULL) AS low,
           if(formed_low >= formed_at(), high, NULL) AS high,
           if(formed_low >= formed_at(),
              format('no crossover in {:.0f} % of the resamples', 100 * uncrossed),
              'no argument formed for sure before an overtaking answer') AS note
    FROM crossed WHERE prompt_set = 'abstractive'
    UNION ALL
    -- Without a crossover nothing formed before it.
    SELECT model, task, 'in', prompts, 'X, ' || prompt_set || ' prompts',
           yes(prompts, coalesce(formed_low, 0), coalesce(formed_high, 0), formed_at()),
           formed_low, formed_high,
           'argument before the crossover '
               || coalesce(format('{:.2f}', formed), '(no crossover)')
               || format('; interval: of it; yes from {:.1f} on; ', formed_at())
               || undecided(prompts, coalesce(formed_low, 0), coalesce(formed_high, 0), formed_at())
    FROM crossed
),
-- Errors and tokenization: the mean over the tasks, each with one voice. An error has a place where its
-- share is told apart from both others': a prompt counts for one of them alone.
errors AS (
    UNPIVOT (SELECT model, sum(prompts)::BIGINT AS prompts, count(*) AS tasks,
                    avg(argument_stays) AS "place among errors: argument stays",
                    avg(other_answer) AS "place among errors: other answer",
                    avg(other) AS "place among errors: other"
             FROM results WHERE domain = 'in' GROUP BY model)
    ON COLUMNS('place') INTO NAME quantity VALUE share
),
places AS (
    SELECT e.*, 1 + count_if(o.share > e.share) AS place,
           bool_and(abs(e.share - o.share) > 1.96 * sqrt(
               (e.share + o.share - (e.share - o.share) ** 2) / e.prompts)) AS apart
    FROM errors AS e JOIN errors AS o ON e.model = o.model AND e.quantity != o.quantity
    GROUP BY ALL
),
of_errors AS (
    SELECT model, 'all' AS task, 'in' AS domain, prompts, quantity,
           if(enough(prompts) AND apart, place, NULL) AS value,
           wilson_low(share, prompts) AS low, wilson_high(share, prompts) AS high,
           format('share of all prompts {:.2f}, mean of {} tasks; interval: of the share', share, tasks)
               || if(apart, '', '; not told apart from the others') AS note
    FROM places
),
of_letters AS (
    SELECT o.model, reciprocal_rank_after AS after,
           unnest(['answers of several tokens are worse', 'one-letter first tokens are worse'])
               AS quantity,
           unnest([answer_length > 1, first_token_letters = 1]) AS these
    FROM outcomes AS o
    JOIN prompts AS p
        ON (o.model, o.task, o.prompt_id, 'novel') = (p.model, p.task, p.prompt_id, p.prompt_set)
    WHERE method = 'o-vector' AND o.split = 'test' AND domain = 'in'
),
of_tokens AS (
    SELECT model, 'all' AS task, 'in' AS domain, least(n, others) AS prompts, quantity,
           yes(prompts, low, high, 0) AS value, low, high,
           format('mean reciprocal rank after {:.3f} ({}) against {:.3f} ({}); interval: of others minus '
                  || 'these; ', mean, n, mean + gap, others) || undecided(prompts, low, high, 0) AS note
    FROM (
        SELECT *, gap - 1.96 * error AS low, gap + 1.96 * error AS high
        FROM (
            SELECT model, quantity, count(*) FILTER (these) AS n, count(*) FILTER (NOT these) AS others,
                   avg(after) FILTER (these) AS mean,
                   avg(after) FILTER (NOT these) - avg(after) FILTER (these) AS gap,
                   sqrt(var_samp(after) FILTER (these) / n + var_samp(after) FILTER (NOT these) / others)
                       AS error
            FROM of_letters GROUP BY model, quantity
        )
    )
    WHERE n > 1 AND others > 1
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
           unnest([if(too_few(count(*) FILTER (correct - change = 1)), NULL, avg(change)),
                   avg(correct)]) AS value,
           unnest([avg(change) - 1.96 * stddev_samp(change) / sqrt(count(*)),
                   wilson_low(avg(correct), count(*))]) AS low,
           unnest([avg(change) + 1.96 * stddev_samp(change) / sqrt(count(*)),
                   wilson_high(avg(correct), count(*))]) AS high,
           format('{} FFNs removed; accuracy {:.2f} before, {:.2f} after{}',
                  any_value(removed_layers), avg(correct) - avg(change), avg(correct),
                  if(too_few(count(*) FILTER (correct - change = 1)),
                     '; too few right answers to lose', '')) AS note
    FROM removed
    GROUP BY model, task, prompt_set
),
every_task AS (
    FROM of_settings UNION ALL BY NAME FROM of_ranks UNION ALL BY NAME FROM of_stages
    UNION ALL BY NAME FROM of_errors UNION ALL BY NAME FROM of_tokens
    UNION ALL BY NAME FROM of_ablations
),
-- The authors' own list of capitals stands for ours where a sweep has it.
ours AS (
    SELECT * REPLACE (if(task = 'capitals_paper', 'capitals', task) AS task)
    FROM every_task
    WHERE task != 'capitals' OR NOT EXISTS (FROM tasks WHERE task = 'capitals_paper')
)
SELECT quantity, paper_model, task, domain, paper_value, source,
       model AS our_model, value AS our_value, low AS our_low, high AS our_high, prompts,
       concat_ws('; ', 'paper: ' || nullif(paper_note, ''), 'ours: ' || nullif(note, ''),
                 CASE WHEN value IS NULL AND note IS NULL THEN 'not in this sweep' END) AS note
FROM paper CROSS JOIN (SELECT model FROM models) LEFT JOIN ours USING (model, quantity, task, domain)
ORDER BY source, paper_model, task, domain, quantity, our_model
