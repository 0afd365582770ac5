-- Where the answer overtakes the argument for good, in-domain prompts answered correctly. Uncrossed:
-- share of the bootstrap's resamples that have no crossover.
SELECT model, family, parameters, task, prompt_set, prompts, depth, low, high, uncrossed,
       argument_peak, argument_peak_layer, argument_end, answer_end, too_few(prompts) AS too_few
FROM crossovers JOIN models USING (model)
WHERE subset = 'correct'
ORDER BY ALL
