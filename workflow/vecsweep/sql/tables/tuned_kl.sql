-- How far the plain and the tuned lens are from what the model says in the end, by layer.
SELECT t.model, t.layer, (t.layer + 1) / layers AS depth, t.ridge, t.steps, t.held_out,
       p.held_out_kl AS held_out_plain, t.held_out_kl AS held_out_tuned,
       t.ridge IS NOT NULL AS gains, t.prompts,
       p.kl AS plain, p.low AS plain_low, p.high AS plain_high,
       t.kl AS tuned, t.low AS tuned_low, t.high AS tuned_high
FROM tuned_layers AS t
JOIN tuned_layers AS p USING (model, layer)
JOIN models USING (model)
WHERE t.lens = 'tuned' AND p.lens = 'plain'
ORDER BY ALL
