-- The FOVs of the index, and their strata, numbered without gaps.
-- In:  fovs (fov, experiment_index, experiment, fov_name, well, condition_index, condition, frames, height, width),
--      kept_tracks (fov)
-- Row: one FOV with kept observations, in order of (experiment, fov_name).
-- Out: fov_index
--      stratum_index   numbers the (experiment, condition) that have observations, in the order of the YAML
--      the columns of fovs
SELECT
    (row_number() OVER (ORDER BY fov) - 1)::INTEGER AS fov_index,
    (dense_rank() OVER (ORDER BY experiment_index, condition_index) - 1)::INTEGER AS stratum_index,
    fovs.*
FROM fovs
SEMI JOIN kept_tracks USING (fov)
ORDER BY fov_index
