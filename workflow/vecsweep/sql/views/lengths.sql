-- Table word_lengths, a row for each of the three lengths: argument_length, answer_length,
-- first_token_letters.
FROM (UNPIVOT word_lengths
      ON argument_length, answer_length, first_token_letters INTO NAME length VALUE size)
