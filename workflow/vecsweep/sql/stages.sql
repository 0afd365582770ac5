-- The stages of every prompt (paper, section 1), from `lens`, the wide rows of stage lens.
--
-- A token is "the top" where no token has a larger logit (rank 0). The stream is read where it
-- leaves a block (site resid_post) and, in sequential blocks, between attention and FFN
-- (resid_mid); parallel blocks have no mid-block state.
--   argument formation    the argument is the top of a state before the answer first is:
--                         argument_first and argument_last are the layers of the first and last
--                         such state;
--   function application  function_layer, from whose end on the answer is the top to the end;
--   saturation            the layers from function_layer on: saturation_layers counts them;
--   flip                  one FFN turned the argument into the answer: the argument is the top
--                         just before it (mid-block state; parallel blocks: the block's input) and
--                         the answer just after (parallel blocks: with the FFN's update alone, and
--                         at the block's end). flip_layer is the last such layer up to
--                         function_layer.
-- pattern: incorrect (the answer is not the top at the end), argument-function (argument formation
-- came first), direct (it did not). pattern_post is the paper's reading, which sees the ends of
-- blocks only.
-- function_site, sequential blocks: ffn if the answer is not yet the top in the mid-block state of
-- function_layer, else attention. Parallel blocks: each update is added to the block's input alone,
-- and the one that makes the answer the top is named; both or joint if either does, or only their
-- sum.
WITH tops AS (
    SELECT model, task, prompt_set, prompt_id, layer, site,
           argument_rank = 0 AS argument_top, answer_rank = 0 AS answer_top
    FROM lens
),
-- The states of the stream in their order.
stream AS (
    SELECT *, 2 * layer + (site = 'resid_post')::INT AS place,
           lag(argument_top AND NOT answer_top) OVER (
               PARTITION BY model, task, prompt_set, prompt_id
               ORDER BY 2 * layer + (site = 'resid_post')::INT
           ) AS argument_before
    FROM tops
    WHERE site IN ('resid_mid', 'resid_post')
),
ends AS (
    SELECT model, task, prompt_set, prompt_id,
           max(layer) AS last_layer,
           coalesce(min(place) FILTER (answer_top), 1e9) AS answer_first,
           coalesce(min(place) FILTER (answer_top AND site = 'resid_post'), 1e9) AS answer_post,
           coalesce(max(layer) FILTER (NOT answer_top AND site = 'resid_post'), -1) + 1 AS candidate
    FROM stream
    GROUP BY ALL
),
formation AS (
    SELECT model, task, prompt_set, prompt_id,
           min(layer) FILTER (place < answer_first) AS argument_first,
           max(layer) FILTER (place < answer_first) AS argument_last,
           coalesce(bool_or(site = 'resid_post' AND place < answer_post), false) AS formed_post
    FROM stream JOIN ends USING (model, task, prompt_set, prompt_id)
    WHERE argument_top
    GROUP BY ALL
),
sites AS (
    SELECT model, task, prompt_set, prompt_id, layer AS function_layer,
           bool_or(answer_top) FILTER (site = 'resid_mid') AS at_mid,
           bool_or(answer_top) FILTER (site = 'attention_alone') AS by_attention,
           bool_or(answer_top) FILTER (site = 'ffn_alone') AS by_ffn
    FROM tops
    GROUP BY ALL
),
applied AS (
    SELECT *, CASE WHEN candidate <= last_layer THEN candidate END AS function_layer
    FROM ends
),
flips AS (
    SELECT model, task, prompt_set, prompt_id, max(layer) AS flip_layer
    FROM stream
    JOIN (SELECT model, task, prompt_set, prompt_id, function_layer AS layer, by_ffn FROM sites)
        USING (model, task, prompt_set, prompt_id, layer)
    JOIN applied USING (model, task, prompt_set, prompt_id)
    WHERE site = 'resid_post' AND argument_before AND answer_top AND coalesce(by_ffn, true)
      AND layer <= function_layer
    GROUP BY ALL
)
SELECT model, task, prompt_set, prompt_id,
       CASE WHEN function_layer IS NULL THEN 'incorrect'
            WHEN argument_first IS NOT NULL THEN 'argument-function'
            ELSE 'direct' END AS pattern,
       CASE WHEN function_layer IS NULL THEN 'incorrect'
            WHEN formed_post THEN 'argument-function'
            ELSE 'direct' END AS pattern_post,
       argument_first,
       argument_last,
       function_layer::SMALLINT AS function_layer,
       CASE WHEN function_layer IS NULL THEN NULL
            WHEN at_mid IS NOT NULL THEN if(at_mid, 'attention', 'ffn')
            WHEN by_attention AND by_ffn THEN 'both'
            WHEN by_ffn THEN 'ffn'
            WHEN by_attention THEN 'attention'
            ELSE 'joint' END AS function_site,
       flip_layer::SMALLINT AS flip_layer,
       (last_layer - function_layer + 1)::SMALLINT AS saturation_layers
FROM applied
LEFT JOIN formation USING (model, task, prompt_set, prompt_id)
LEFT JOIN sites USING (model, task, prompt_set, prompt_id, function_layer)
LEFT JOIN flips USING (model, task, prompt_set, prompt_id)
ORDER BY model, task, prompt_set, prompt_id
