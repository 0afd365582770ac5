-- Share of the patterns, and of the sublayer that applies the function, among kept prompts.
SELECT model, task, prompt_set,
       count(*) AS prompts,
       avg((pattern != 'incorrect')::INT) AS correct,
       avg((pattern = 'argument-function')::INT) AS argument_function,
       avg((pattern = 'direct')::INT) AS direct,
       avg((function_site = 'ffn')::INT) FILTER (pattern != 'incorrect') AS by_ffn,
       avg((function_site = 'attention')::INT) FILTER (pattern != 'incorrect') AS by_attention,
       avg((function_site IN ('both', 'joint'))::INT) FILTER (pattern != 'incorrect') AS by_both_or_joint,
       median(function_layer) AS median_function_layer,
       median(function_layer + 1) / any_value(layers) AS median_function_depth,
       median(saturation_layers) AS median_saturation_layers
FROM stages JOIN models USING (model)
GROUP BY ALL
ORDER BY ALL
