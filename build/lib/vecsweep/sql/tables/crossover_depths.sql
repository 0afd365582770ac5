-- Where the answer overtakes the argument for good, prompts answered correctly.
SELECT model, family, parameters, task, prompt_set, prompts, depth, low, high,
       argument_peak, argument_peak_layer, argument_end, answer_end
FROM crossovers JOIN models USING (model)
WHERE subset = 'correct'
ORDER BY ALL
