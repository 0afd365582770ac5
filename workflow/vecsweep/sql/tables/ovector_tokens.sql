-- What each o-vector promotes and demotes when it is read out as if it were a state.
SELECT model, task, layer, donor, rule, flips, argument, answer, norm, cosine_to_mean,
       list(shown(token, token_id) ORDER BY position)
           FILTER (direction = 'promoted') AS promoted,
       list(shown(token, token_id) ORDER BY position)
           FILTER (direction = 'demoted') AS demoted
FROM (
    SELECT * EXCLUDE (promoted, demoted), 'promoted' AS direction, unnest(promoted) AS token_id,
           generate_subscripts(promoted, 1) AS position
    FROM ovectors
    UNION ALL
    SELECT * EXCLUDE (promoted, demoted), 'demoted', unnest(demoted),
           generate_subscripts(demoted, 1)
    FROM ovectors
) LEFT JOIN vocabularies USING (model, token_id)
GROUP BY ALL
ORDER BY model, task, layer, donor
