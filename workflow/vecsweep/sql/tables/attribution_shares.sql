-- What each sublayer adds to logit(answer) - logit(argument), prompts answered correctly.
SELECT model, task, prompt_set, layer, (layer + 1) / layers AS depth, sublayer, prompts,
       contribution, low, high
FROM attribution_bands JOIN models USING (model)
ORDER BY ALL
