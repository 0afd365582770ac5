-- Share of the patterns, and of the sublayer that applies the function, among kept prompts. Subset
-- `all` holds the in-domain prompts; each template of theirs and each group of the task stands apart.
-- Chance: an answer drawn from all of the task's is accepted.
WITH answers AS (
    SELECT model, task, prompt_set, len(list_distinct(flatten(list(answer_tokens)))) AS size
    FROM prompts
    WHERE dropped IS NULL AND prompt_set != 'novel'
    GROUP BY ALL
),
judged AS (
    SELECT s.*, out_of_domain, "group", template, answer_in_prompt,
           len(answer_tokens) / size AS chance
    FROM stages AS s
    JOIN prompts USING (model, task, prompt_set, prompt_id)
    JOIN answers USING (model, task, prompt_set)
),
parts AS (
    SELECT 'all' AS subset, * FROM judged WHERE NOT out_of_domain
    UNION ALL
    SELECT format('template {}', template), * FROM judged WHERE NOT out_of_domain
    UNION ALL
    SELECT format('group {}', "group"), * FROM judged WHERE "group" IS NOT NULL
)
SELECT model, task, prompt_set, subset,
       count(*) AS prompts,
       avg((pattern != 'incorrect')::INT) AS correct,
       wilson_low(avg((pattern != 'incorrect')::INT), count(*)) AS correct_low,
       wilson_high(avg((pattern != 'incorrect')::INT), count(*)) AS correct_high,
       avg(chance) AS chance,
       avg(answer_in_prompt::INT) AS answer_in_prompt,
       avg((pattern = 'argument-function')::INT) AS argument_function,
       avg((pattern_post = 'argument-function')::INT) AS argument_function_post,
       avg((pattern = 'direct')::INT) AS direct,
       avg((flip_layer IS NOT NULL)::INT) AS flips,
       avg((function_site = 'ffn')::INT) FILTER (pattern != 'incorrect') AS by_ffn,
       avg((function_site = 'attention')::INT) FILTER (pattern != 'incorrect') AS by_attention,
       avg((function_site IN ('both', 'joint'))::INT) FILTER (pattern != 'incorrect') AS by_both_or_joint,
       median(function_layer) AS median_function_layer,
       median(function_layer + 1) / any_value(layers) AS median_function_depth,
       median(saturation_layers) AS median_saturation_layers,
       too_few(count(*) FILTER (pattern != 'incorrect')) AS too_few
FROM parts JOIN models USING (model)
GROUP BY ALL
ORDER BY ALL
