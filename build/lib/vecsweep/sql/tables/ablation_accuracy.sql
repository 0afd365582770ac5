-- Accuracy with sublayers removed, with 95 % Wilson intervals.
SELECT model, task, prompt_set, sublayer, value, "order", step, removed_layers, fraction,
       prompts, accuracy, wilson_low(accuracy, prompts) AS low, wilson_high(accuracy, prompts) AS high
FROM (
    SELECT model, task, prompt_set, sublayer, value, "order", step, removed_layers, fraction,
           count(*) AS prompts, avg(correct::INT) AS accuracy
    FROM ablations
    GROUP BY ALL
)
ORDER BY ALL
