-- What holds whatever the models do: a row for each cell that breaks it, by the stage whose file is
-- wrong. `which`: how many prompts, and the sum of their hashes, which tells them from others.
WITH kept AS (
    SELECT model, task, [count(*), sum(hash(prompt_set, prompt_id))] AS which
    FROM prompts
    WHERE dropped IS NULL AND prompt_set != 'novel'
    GROUP BY ALL
),
cells AS (FROM kept JOIN models USING (model)),
layer_of AS (
    SELECT model, task, which, parallel_blocks, unnest(range(layers))::SMALLINT AS layer FROM cells
),
lens_wanted AS (
    SELECT model, task, layer, which,
           unnest(if(parallel_blocks, ['attention_alone', 'ffn_alone', 'resid_post'],
                     ['resid_mid', 'resid_post'])) AS site
    FROM layer_of
),
lens_found AS (
    SELECT model, task, layer, site, target, [count(*), sum(hash(prompt_set, prompt_id))] AS which,
           bool_and(coalesce(rank >= 0 AND probability BETWEEN 0 AND 1.00001, false)) AS sound
    FROM lens
    GROUP BY ALL
),
top_found AS (
    SELECT model, task, layer, site, count(*) AS prompts,
           bool_and(coalesce(probability BETWEEN 0 AND 1.00001, false)) AS sound
    FROM top_tokens
    WHERE position = 0
    GROUP BY ALL
),
stages_found AS (
    SELECT model, task, [count(*), sum(hash(prompt_set, prompt_id))] AS which,
           bool_and(pattern IN ('incorrect', 'argument-function', 'direct')
                    AND (pattern = 'incorrect') = (function_layer IS NULL)
                    AND (pattern = 'incorrect') = (function_site IS NULL)
                    AND coalesce(function_site IN ('ffn', 'attention', 'both', 'joint'), true))
               AS sound
    FROM stages
    GROUP BY ALL
),
-- An answer is on top at the end just where the prompt counts as correct.
ends AS (
    SELECT model, task, bool_and((rank = 0) = (pattern != 'incorrect')) AS sound
    FROM lens JOIN models USING (model) JOIN stages USING (model, task, prompt_set, prompt_id)
    WHERE target = 'answer' AND site = 'resid_post' AND layer = layers - 1
    GROUP BY ALL
),
attribution_wanted AS (
    SELECT model, task, which, layer, unnest(['attention', 'ffn']) AS sublayer FROM layer_of
    UNION ALL
    SELECT model, task, which, -1, unnest(['embedding', 'bias']) FROM kept
),
attribution_found AS (
    SELECT model, task, coalesce(layer, -1) AS layer, sublayer,
           [count(*), sum(hash(prompt_set, prompt_id))] AS which,
           bool_and(coalesce(isfinite(contribution), false)) AS sound
    FROM attribution
    GROUP BY ALL
),
tuned_found AS (
    SELECT model, layer, [count(*), sum(hash(task, prompt_set, prompt_id))] AS which,
           bool_and(coalesce(argument_rank >= 0 AND answer_rank >= 0 AND isfinite(kl)
                             AND isfinite(plain_kl), false)) AS sound
    FROM tuned
    GROUP BY ALL
),
-- The same prompts at every setting, and for contenders the same as for the others.
settings AS (
    SELECT model, ovector_task, task, split, domain,
           CASE WHEN method IN ('task vector', 'function vector') THEN 'contenders'
                WHEN split = 'dev' THEN 'interventions' ELSE 'selection' END AS stage,
           [count(*), sum(hash(prompt_id))] AS which,
           bool_and(coalesce(rank_before >= 0 AND rank_after >= 0 AND place_before >= 0
                             AND place_after BETWEEN 0 AND alternatives, false)) AS sound
    FROM interventions
    GROUP BY model, ovector_task, task, split, domain, target, start_layer, end_layer, source_layer,
             method, donor, repeat, mode, position, scale
),
tried AS (
    SELECT model, ovector_task, stage, split, task, domain, any_value(which) AS which,
           bool_and(sound) AND count(DISTINCT which) = 1 AS sound
    FROM settings
    GROUP BY ALL
),
injected AS (
    SELECT model, ovector_task AS task, stage, bool_and(sound) AS sound FROM tried GROUP BY ALL
),
heads_found AS (
    SELECT model, task, count(*) = any_value(layers) * count(DISTINCT head)
               AND count(DISTINCT (layer, head)) = count(*) AND count(DISTINCT prompts) = 1
               AND bool_and(coalesce(effect BETWEEN -1.00001 AND 1.00001, false)) AS sound
    FROM heads JOIN models USING (model)
    GROUP BY ALL
),
-- Every prompt is judged, and is of one class.
judged AS (
    SELECT model, ovector_task AS task, split, count(*) AS prompts,
           bool_and(coalesce(top_1 + argument_stays + other_answer + other = 1, false)) AS sound
    FROM outcomes
    GROUP BY ALL
),
to_judge AS (
    SELECT model, ovector_task AS task, split, count(*) AS prompts
    FROM interventions
    WHERE target = 'answer'
    GROUP BY ALL
),
removals AS (
    SELECT model, task, sublayer, value, "order", step,
           [count(*), sum(hash(prompt_set, prompt_id))] AS which,
           bool_and(coalesce(rank >= 0 AND correct = (rank = 0), false)) AS sound
    FROM ablations
    GROUP BY ALL
),
ablated AS (
    SELECT model, task,
           bool_and(sound) AND count(DISTINCT which) = 1
               AND count(*) = 7 * count(DISTINCT (sublayer, value, "order")) AS sound
    FROM removals
    GROUP BY ALL
),
exchanges AS (
    SELECT model, task, layer, sublayer, count(other_id) AS pairs,
           count(*) FILTER (other_id IS NULL) AS dropped, count(DISTINCT prompt_id) AS prompts,
           bool_and(outcome = CASE WHEN own_rank = 0 THEN 'own' WHEN others_rank = 0 THEN 'others'
                              ELSE 'neither' END) AS sound
    FROM swaps
    GROUP BY ALL
),
exchanged AS (
    SELECT model, task,
           bool_and(sound AND pairs = prompts * (prompts - 1)
                    AND dropped = if(sublayer = 'state', 0, prompts))
               AND count(*) = 3 * any_value(layers) AND count(DISTINCT prompts) = 1 AS sound
    FROM exchanges JOIN models USING (model)
    GROUP BY ALL
),
patches AS (
    SELECT model, task, layer, sublayer, position, [count(*), sum(hash(prompt_id, other_id))] AS which,
           bool_and(coalesce(isfinite(restored), false)) AS sound
    FROM patching
    GROUP BY ALL
),
patched AS (
    SELECT model, task,
           bool_and(sound) AND count(DISTINCT which) = 1 AND count(*) = 6 * any_value(layers) AS sound
    FROM patches JOIN models USING (model)
    GROUP BY ALL
),
fits AS (
    SELECT model, task, split, measure, method, layer, beta, "rank",
           [count(*), sum(hash(prompt_id, other_id))] AS which,
           bool_and(coalesce(success = (asked_rank = 0) AND chance BETWEEN 0 AND 1, false)) AS sound
    FROM relational
    GROUP BY ALL
),
related AS (
    SELECT model, task,
           bool_and(sound) AND count(DISTINCT which) = 1
               AND (split = 'dev' OR count(*) = count(DISTINCT method)) AS sound
    FROM fits
    GROUP BY model, task, split, measure
),
words AS (
    SELECT model, any_value(vocabulary) IS NOT DISTINCT FROM count(token_id)
                  AND count(DISTINCT token_id) = count(*)
                  AND min(token_id) = 0 AND max(token_id) = count(*) - 1 AS sound
    FROM models LEFT JOIN vocabularies USING (model)
    GROUP BY ALL
)
SELECT 'lens' AS stage, model, task, layer,
       'not one row for each kept prompt at each site of layer ' || layer AS said
FROM lens_wanted AS w
FULL JOIN (SELECT * FROM lens_found, (SELECT unnest(['argument', 'answer']) AS each) WHERE target = each)
    AS f USING (model, task, layer, site)
WHERE w.which IS DISTINCT FROM f.which
UNION ALL
SELECT 'lens', model, task, layer, 'a rank or probability that can be none, in layer ' || layer
FROM lens_found WHERE NOT sound
UNION ALL
SELECT 'lens', model, task, layer, 'not one top token for each kept prompt, in layer ' || layer
FROM lens_wanted AS w LEFT JOIN top_found AS f USING (model, task, layer, site)
WHERE which[1] IS DISTINCT FROM prompts OR NOT sound
UNION ALL
SELECT 'stages', model, task, NULL, 'not one row for each kept prompt'
FROM kept AS w FULL JOIN stages_found AS f USING (model, task)
WHERE w.which IS DISTINCT FROM f.which
UNION ALL
SELECT 'stages', model, task, NULL, 'patterns and sites whose shares are not 1 in all'
FROM stages_found WHERE NOT coalesce(sound, false)
UNION ALL
SELECT 'stages', model, task, NULL, 'correct prompts are not those whose answer ends at rank 0'
FROM ends WHERE NOT coalesce(sound, false)
UNION ALL
SELECT 'attribution', model, task, NULL, 'not one number for each kept prompt and sublayer'
FROM attribution_wanted AS w FULL JOIN attribution_found AS f
    USING (model, task, layer, sublayer)
WHERE w.which IS DISTINCT FROM f.which OR NOT sound
UNION ALL
SELECT 'tuned', model, NULL, NULL, 'not the same prompts after every layer, or a number that can be none'
FROM tuned_found JOIN models USING (model)
GROUP BY model
HAVING count(DISTINCT which) > 1 OR count(*) != any_value(layers) OR NOT bool_and(sound)
UNION ALL
SELECT stage, model, task, NULL,
       'a rank that can be none, or settings with other prompts than the rest'
FROM injected WHERE NOT sound
UNION ALL
SELECT DISTINCT 'contenders', c.model, c.ovector_task, NULL, 'other prompts than the o-vector''s'
FROM tried AS c JOIN tried AS o USING (model, ovector_task, split, task, domain)
WHERE c.stage = 'contenders' AND o.stage != 'contenders' AND c.which != o.which
UNION ALL
SELECT 'heads', model, task, NULL, 'not one number for each layer and head'
FROM heads_found WHERE NOT coalesce(sound, false)
UNION ALL
SELECT if(split = 'dev', 'interventions', 'selection'), model, task, NULL,
       'prompts that cannot be judged, or shares that are not 1 in all'
FROM to_judge AS w LEFT JOIN judged AS f USING (model, task, split)
WHERE w.prompts IS DISTINCT FROM f.prompts OR NOT sound
UNION ALL
SELECT 'ovectors', model, task, layer, 'a length that can be none'
FROM ovectors WHERE NOT coalesce(norm > 0 AND isfinite(norm), false)
UNION ALL
SELECT 'ablations', model, task, NULL, 'not the same prompts at all seven steps, or a wrong rank'
FROM ablated WHERE NOT coalesce(sound, false)
UNION ALL
SELECT 'swaps', model, task, NULL, 'not every pair at every layer and part, or a wrong outcome'
FROM exchanged WHERE NOT coalesce(sound, false)
UNION ALL
SELECT 'patching', model, task, NULL, 'not the same pairs at every layer, part and token'
FROM patched WHERE NOT coalesce(sound, false)
UNION ALL
SELECT 'relational', model, task, NULL, 'not the same prompts at every setting, or several on test'
FROM related WHERE NOT coalesce(sound, false)
UNION ALL
SELECT 'models', model, NULL, NULL, 'vocabulary.parquet has not just the tokens that model.json counts'
FROM words WHERE NOT coalesce(sound, false)
