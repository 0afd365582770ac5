-- Whether the X stands in the tuned lens: argument and crossover by the plain and the tuned lens, the same
-- in-domain dev and test prompts answered correctly. X and formed as in table findings.
SELECT c.model, c.task, c.lens, c.prompts,
       CASE WHEN too_few(c.prompts) THEN 'too few'
            WHEN NOT enough(c.prompts) THEN 'few'
            ELSE CASE yes(c.prompts, coalesce(formed_low, 0), coalesce(formed_high, 0), formed_at())
                 WHEN 1 THEN 'yes' WHEN 0 THEN 'no' ELSE 'undecided' END END AS x,
       c.depth, c.low, c.high, uncrossed, formed, formed_low, formed_high, argument_on_top,
       argument_peak, argument_peak_layer, argument_end, answer_end
FROM tuned_crossovers AS c
JOIN (
    SELECT model, task, lens, max(top_1) AS argument_on_top
    FROM tuned_curves WHERE target = 'argument'
    GROUP BY ALL
) USING (model, task, lens)
ORDER BY ALL
