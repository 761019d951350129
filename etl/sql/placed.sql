-- Where the patch of each observation is centred, and which observations have none.
-- In:  rows (row, fov, track_id, t, y, x, z, id, parent_id): the track files
--      fovs (fov, frames, height, width, and the least and greatest centre of a patch: y_low, y_high, x_low, x_high)
--      $max_shift: pixels or NULL for no limit
-- Row: one observation of the track files.
-- Out: the columns of rows
--      y_clamp, x_clamp   centre of the patch. Clipped, then truncated, as the reference implementation does.
--      reason             why the observation is dropped; NULL if it is kept
WITH clipped AS (
    SELECT
        rows.*,
        frames,
        height,
        width,
        floor(greatest(y_low, least(y, y_high)))::INTEGER AS y_clamp,
        floor(greatest(x_low, least(x, x_high)))::INTEGER AS x_clamp
    FROM rows
    JOIN fovs USING (fov)
)
SELECT
    row,
    fov,
    track_id,
    t,
    z,
    y,
    x,
    id,
    parent_id,
    y_clamp,
    x_clamp,
    CASE
        WHEN t < 0 OR t >= frames THEN 'outside_time'
        WHEN y < 0 OR y >= height OR x < 0 OR x >= width THEN 'outside_image'
        WHEN greatest(abs(y_clamp - floor(y)), abs(x_clamp - floor(x))) > $max_shift THEN 'near_border'
    END AS reason
FROM clipped
