-- The FOVs of the index, numbered without gaps.
-- In:  fovs (fov, experiment_index, experiment, fov_name, well, condition, frames, height, width),
--      kept_tracks (fov)
-- Row: one FOV with kept observations, in order of (experiment, fov_name).
-- Out: fov_index
--      the columns of fovs
SELECT
    (row_number() OVER (ORDER BY fov) - 1)::INTEGER AS fov_index,
    fovs.*
FROM fovs
SEMI JOIN kept_tracks USING (fov)
ORDER BY fov_index
