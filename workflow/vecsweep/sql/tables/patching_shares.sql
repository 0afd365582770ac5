-- What each layer's state and updates, put into another prompt's run, bring of the answer.
SELECT model, task, layer, (layer + 1) / layers AS depth, sublayer, position, pairs, restored, low, high
FROM patching_bands JOIN models USING (model)
ORDER BY ALL
