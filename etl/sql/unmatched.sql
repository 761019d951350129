-- How many annotations are about no observation of the index.
-- In:  annotations (annotation, experiment_index), annotated (annotation)
-- Row: one experiment with such annotations.
-- Out: experiment_index
--      unmatched          annotations without an observation
--      annotations        all annotations of the experiment
--      first_unmatched    row of the annotation table
SELECT
    experiment_index,
    count(*) FILTER (WHERE used.annotation IS NULL) AS unmatched,
    count(*) AS annotations,
    min(annotations.annotation) FILTER (WHERE used.annotation IS NULL)
        - min(annotations.annotation) AS first_unmatched
FROM annotations
LEFT JOIN (SELECT DISTINCT annotation FROM annotated) AS used USING (annotation)
GROUP BY experiment_index
HAVING count(*) FILTER (WHERE used.annotation IS NULL) > 0
ORDER BY experiment_index
