-- What may be said of a model and task, in words, and the rows that it stands on. An o-vector's sentence
-- names the strongest other thing that was put in its place, an exchange's both shares; and the prompts
-- where a task has several out-of-domain sets.
WITH words AS (
    SELECT * FROM (VALUES
        ('mean', 'the mean of all donors of a layer'),
        ('difference', 'a difference of mean states'),
        ('rival', 'another task''s mean o-vector'),
        ('unrelated', 'the FFN''s update on random words'),
        ('random', 'random vectors of the same norm'),
        ('zero', 'dropping the FFNs'),
        ('task vector', 'a task vector, the state after demonstrations'),
        ('function vector', 'a function vector, of the heads that demonstrations act by'),
        ('neurons_1', 'the o-vector''s largest neuron alone'),
        ('neurons_10', 'the o-vector''s ten largest neurons'),
        ('neurons_100', 'the o-vector''s hundred largest neurons'),
        ('directions_1', 'the o-vector along one direction'),
        ('directions_10', 'the o-vector along ten directions'),
        ('directions_100', 'the o-vector along a hundred directions')
    ) AS t(method, rival)
),
outside AS (
    SELECT *, count(*) OVER (PARTITION BY task) AS sets FROM outside_names
),
ovector AS (
    SELECT e.model, e.ovector_task AS task, e.domain, e.task AS prompts_of, 'o-vector' AS claim,
           'methods' AS "table", format('o-vector, {}', s.method) AS "rows", e.prompts,
           concat(if(sets > 1, name || ': ', ''), CASE WHEN NOT enough(e.prompts)
                THEN format('Too few test prompts ({}) for a finding.', e.prompts)
                ELSE concat_ws(' ', format(
               'The FFN update of {} → {} (layer {}), {} {}, {} the mean reciprocal rank of the answer '
               || 'in novel contexts from {:.2f} to {:.2f} ({:.2f} to {:.2f}, {} test prompts).',
               v.argument, split_part(v.answer, '|', 1), e.source_layer,
               if(e.mode = 'replace', 'put in place of the FFN''s', 'added to the FFN''s'),
               if(e.start_layer = e.end_layer, format('of layer {}', e.start_layer),
                  format('of layers {} to {}', e.start_layer, e.end_layer)),
               if(e.rise_low > 0, 'takes', 'does not surely lift'),
               e.reciprocal_rank_before, e.reciprocal_rank_after,
               e.reciprocal_rank_after_low, e.reciprocal_rank_after_high, e.prompts),
               format('{} {}, {:.2f} ({}).',
               if(s.difference > 0, 'Stronger than it:', 'Next to it:'), rival,
               s.reciprocal_rank_after,
               if(s.p_holm < 0.05, format('p = {:.3f}', s.p_holm),
                  format('not told apart, p = {:.2f}', s.p_holm))),
               CASE e.transfer
               WHEN 'argument' THEN format(
                   'Among all answers of the task the own one stands above chance ({:.2f} against {:.2f}; '
                   || 'before: {:.2f}).', e.among_after, e.among_chance, e.among_before)
               WHEN 'class' THEN format(
                   'Among all answers of the task the own one does not surely stand above chance ({:.2f} '
                   || 'against {:.2f}).', e.among_after, e.among_chance)
               END) END) AS sentence
    FROM effects AS e
    JOIN strongest AS s USING (model, ovector_task, task, domain)
    JOIN words ON s.method = words.method
    JOIN chosen AS c ON (c.model, c.task, c.method) = (e.model, e.ovector_task, e.method)
    JOIN ovectors AS v
        ON (v.model, v.task, v.layer, v.donor) = (c.model, c.task, c.source_layer, c.donor)
    LEFT JOIN outside AS o
        ON (o.task, o.prompts_of, 'out') = (e.ovector_task, e.task, e.domain)
    WHERE e.method = 'o-vector'
),
swapped AS (
    SELECT model, task, 'in' AS domain, task AS prompts_of, 'swap' AS claim,
           'swap_verdicts' AS "table", 'ffn' AS "rows", prompts,
           CASE verdict WHEN 'too few' THEN format('Too few prompts ({}) to exchange.', prompts)
           ELSE format(
               'Exchanged between {} prompts at their function layers ({}), the FFN''s update leaves each '
               || 'its own answer in {:.0f} % of the pairs ({:.0f} to {:.0f}), and brings the other''s along '
               || 'in {:.0f} % ({:.0f} to {:.0f}); dropped, it leaves {:.0f} % their answer: {}.',
               prompts, layers, 100 * own, 100 * own_low, 100 * own_high,
               100 * others, 100 * others_low, 100 * others_high, 100 * own_dropped,
               CASE verdict WHEN 'function' THEN 'it acts as a function of the argument'
                    WHEN 'fact' THEN 'it carries the fact'
                    WHEN 'idle' THEN 'the answer stands without it, and nothing follows'
                    ELSE 'nothing follows for sure' END) END AS sentence
    FROM swap_verdicts
    WHERE sublayer = 'ffn'
)
FROM ovector UNION ALL BY NAME FROM swapped ORDER BY ALL
