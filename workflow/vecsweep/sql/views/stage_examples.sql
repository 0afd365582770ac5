-- The largest models at most, for each the prompt that shows the stages best: the pattern
-- argument-function, applied by the FFN, of the task capitals, with words of one token, the first.
SELECT *
FROM (
    SELECT s.*, argument, answer, text, layers, parameters,
           row_number() OVER (PARTITION BY model ORDER BY
               list_contains(answer_tokens, argument_token),
               pattern != 'argument-function', pattern = 'incorrect', s.task != 'capitals',
               function_site IS DISTINCT FROM 'ffn', argument_length + answer_length,
               s.task, prompt_id) AS place
    FROM stages AS s
    JOIN prompts USING (model, task, prompt_set, prompt_id)
    JOIN models USING (model)
    WHERE prompt_set = 'abstractive'
) AS s
WHERE place = 1
QUALIFY row_number() OVER (ORDER BY parameters DESC, model) <= 4
ORDER BY parameters, model
