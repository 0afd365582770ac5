-- The heads that a function vector is made of, the one that adds most to the answer first. Share: of
-- what the answer loses where the demonstrations' answers are shuffled.
SELECT model, task, layer, (layer + 1) / layers AS depth, head, effect, effect_error,
       CASE WHEN shown_probability > shuffled_probability
            THEN effect / (shown_probability - shuffled_probability) END AS share,
       shown_prompts, shown_probability, shuffled_probability, prompts
FROM heads JOIN models USING (model)
WHERE chosen
ORDER BY model, task, effect DESC, layer, head
