-- Every number of the paper's sections on o-vectors, stages, interventions and ablations beside
-- this sweep's: a row each number and each of our models; our value is null where the sweep does
-- not have it. The paper's ranks come from the mean reciprocal rank (rank = 1 / mean), so do ours.
-- Where the paper says yes (1) or no (0), or gives an order, so does our value.
WITH paper(quantity, paper_model, task, domain, paper_value, source, paper_note) AS (
    VALUES
    ('source layer', 'gpt2-medium', 'capitals', 'in', 19, 'text on o-vectors', 'depth 0.83'),
    ('source layer', 'gpt2-medium', 'colored_objects', 'in', 19, 'text on o-vectors', 'depth 0.83'),
    ('source layer', 'gpt2-medium', 'past_tense', 'in', 18, 'text on o-vectors', 'depth 0.79'),
    ('source layer', 'gpt-j-6b', 'capitals', 'in', 13, 'published vectors', 'depth 0.50'),
    ('source layer', 'gpt-j-6b', 'colored_objects', 'in', 25, 'published vectors', 'depth 0.93'),
    ('source layer', 'gpt-j-6b', 'past_tense', 'in', 19, 'published vectors', 'depth 0.71'),
    ('start layer', 'gpt2-medium', 'capitals', 'in', 18, 'text on o-vectors', 'the last six layers, by hand'),
    ('start layer', 'gpt2-medium', 'colored_objects', 'in', 18, 'text on o-vectors', 'the last six layers, by hand'),
    ('start layer', 'gpt2-medium', 'past_tense', 'in', 18, 'text on o-vectors', 'the last six layers, by hand'),
    ('end layer', 'gpt2-medium', 'capitals', 'in', 23, 'text on o-vectors', 'the last layer'),
    ('end layer', 'gpt2-medium', 'colored_objects', 'in', 23, 'text on o-vectors', 'the last layer'),
    ('end layer', 'gpt2-medium', 'past_tense', 'in', 23, 'text on o-vectors', 'the last layer'),
    ('depth of the crossover', 'most', 'capitals', 'in', 2 / 3, 'Figures 2 and 3', 'about, whatever the size'),
    ('depth of the crossover', 'most', 'colored_objects', 'in', 2 / 3, 'Figures 2 and 3', 'about, whatever the size'),
    ('depth of the crossover', 'most', 'past_tense', 'in', 2 / 3, 'Figures 2 and 3', 'about, whatever the size'),
    ('X, abstractive prompts', 'most', 'capitals', 'in', 1, 'Figure 3', 'yes'),
    ('X, abstractive prompts', 'most', 'colored_objects', 'in', 1, 'Figure 3', 'yes'),
    ('X, abstractive prompts', 'most', 'past_tense', 'in', 1, 'Figure 3', 'yes'),
    ('X, extractive prompts', 'most', 'capitals', 'in', 0, 'Appendix A', 'no'),
    ('X, extractive prompts', 'most', 'colored_objects', 'in', 0, 'Appendix A', 'no'),
    ('rank before', 'gpt2-medium', 'capitals', 'in', 10, 'Figures 4 and 5', 'about'),
    ('rank after', 'gpt2-medium', 'capitals', 'in', 4, 'Figures 4 and 5', 'about'),
    ('top-1 share', 'gpt2-medium', 'capitals', 'in', 0.213, 'Figures 4 and 5', ''),
    ('no-effect share', 'gpt2-medium', 'capitals', 'in', 0.37, 'Figures 4 and 5', ''),
    ('rank before', 'gpt2-medium', 'capitals', 'out', 20, 'Figures 4 and 5', 'about; US states'),
    ('rank after', 'gpt2-medium', 'capitals', 'out', 3, 'Figures 4 and 5', 'about; US states'),
    ('no-effect share', 'gpt2-medium', 'capitals', 'out', 0.20, 'Figures 4 and 5', 'US states'),
    ('rank before', 'gpt2-medium', 'colored_objects', 'in', 5, 'Figures 4 and 5', 'about; colors'),
    ('rank after', 'gpt2-medium', 'colored_objects', 'in', 1, 'Figures 4 and 5', 'about; colors'),
    ('top-1 share', 'gpt2-medium', 'colored_objects', 'in', 0.535, 'Figures 4 and 5', 'colors'),
    ('no-effect share', 'gpt2-medium', 'colored_objects', 'in', 0.04, 'Figures 4 and 5', 'colors'),
    ('no-effect share', 'gpt2-medium', 'colored_objects', 'out', 0.05, 'Figures 4 and 5', 'other words'),
    ('rank before', 'gpt2-medium', 'past_tense', 'in', 7, 'Figures 4 and 5', 'about; regular verbs'),
    ('rank after', 'gpt2-medium', 'past_tense', 'in', 3, 'Figures 4 and 5', 'about; regular verbs'),
    ('top-1 share', 'gpt2-medium', 'past_tense', 'in', 0.078, 'Figures 4 and 5', 'regular verbs'),
    ('no-effect share', 'gpt2-medium', 'past_tense', 'in', 0.19, 'Figures 4 and 5', 'regular verbs'),
    ('rank before', 'gpt2-medium', 'past_tense', 'out', 6, 'Figures 4 and 5', 'about; irregular verbs'),
    ('rank after', 'gpt2-medium', 'past_tense', 'out', 3, 'Figures 4 and 5', 'about; irregular verbs'),
    ('no-effect share', 'gpt2-medium', 'past_tense', 'out', 0.22, 'Figures 4 and 5', 'irregular verbs'),
    ('reciprocal rank rises', 'gpt-j-6b', 'capitals', 'in', 1, 'Appendix A', 'yes, but weaker'),
    ('reciprocal rank rises', 'gpt-j-6b', 'colored_objects', 'in', 1, 'Appendix A', 'yes, strongly'),
    ('reciprocal rank rises', 'gpt-j-6b', 'past_tense', 'in', 1, 'Appendix A', 'yes, but weaker'),
    ('place among errors: argument stays', 'gpt2-medium', 'all', 'in', 1, 'Figures 4 and 5', 'commonest'),
    ('place among errors: other answer', 'gpt2-medium', 'all', 'in', 2, 'Figures 4 and 5', 'next'),
    ('answers of several tokens are worse', 'gpt2-medium', 'all', 'in', 1, 'Appendix E', 'yes'),
    ('one-letter first tokens are worse', 'gpt2-medium', 'all', 'in', 1, 'Appendix E', 'yes, worst of all'),
    ('accuracy change, extractive', 'bloom-176b', 'colored_objects', 'in', -0.17, 'Figure 7', '24 of 70 FFNs removed'),
    ('accuracy change, abstractive', 'bloom-176b', 'colored_objects', 'in', -0.73, 'Figure 7', '24 of 70 FFNs removed'),
    ('accuracy left, abstractive', 'bloom-176b', 'colored_objects', 'in', 0.01, 'Figure 7', '24 of 70 FFNs removed')
),
results AS (
    SELECT c.source_layer, c.task AS asked, e.*
    FROM effects AS e
    JOIN chosen AS c ON (e.model, e.ovector_task, e.start_layer) = (c.model, c.task, c.start_layer)
    WHERE control = 'o-vector'
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
-- The X: the answer overtakes for good an argument that had formed (mean reciprocal rank 0.2).
crossed AS (
    SELECT c.model, c.task, c.prompt_set, c.prompts, c.depth, c.low, c.high,
           max(reciprocal_rank) FILTER (v.depth < c.depth) AS formed
    FROM crossovers AS c JOIN curves AS v USING (model, task, prompt_set, subset)
    WHERE subset = 'correct' AND target = 'argument'
    GROUP BY ALL
),
of_stages AS (
    SELECT model, task, 'in' AS domain, prompts, 'depth of the crossover' AS quantity,
           if(formed >= 0.2, depth, NULL) AS value, if(formed >= 0.2, low, NULL) AS low,
           if(formed >= 0.2, high, NULL) AS high,
           if(formed >= 0.2, '', 'no argument formed before an overtaking answer') AS note
    FROM crossed WHERE prompt_set = 'abstractive'
    UNION ALL
    SELECT model, task, 'in', prompts, 'X, ' || prompt_set || ' prompts',
           (coalesce(formed, 0) >= 0.2)::INT, NULL, NULL,
           'mean reciprocal rank of the argument before the crossover '
               || coalesce(format('{:.2f}', formed), '(no crossover)')
    FROM crossed
),
-- Errors and tokenization: the mean over the tasks, each with one voice.
of_errors AS (
    SELECT model, 'all' AS task, 'in' AS domain, prompts, quantity,
           rank() OVER (PARTITION BY model ORDER BY share DESC) AS value, NULL AS low, NULL AS high,
           format('share of all prompts {:.2f}, mean of {} tasks', share, tasks) AS note
    FROM (UNPIVOT (SELECT model, sum(units) AS prompts, count(*) AS tasks,
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
    JOIN chosen AS c ON (o.model, o.ovector_task, o.start_layer) = (c.model, c.task, c.start_layer)
    JOIN prompts AS p
        ON (o.model, o.task, o.prompt_id, 'novel') = (p.model, p.task, p.prompt_id, p.prompt_set)
    WHERE control = 'o-vector' AND o.split = 'test' AND domain = 'in'
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
