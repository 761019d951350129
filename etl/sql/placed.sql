-- Where the patch of each observation is centred, and which observations have none.
-- In:  rows (row, fov, track_id, t, y, x, z, id, parent_id): the track files
--      fovs (fov, frames, height, width)
--      $patch_height, $patch_width: pixels; $max_shift: pixels or NULL for no limit
--      $pad: whether a patch may reach beyond the image
-- Row: one observation of the track files.
-- Out: the columns of rows
--      y_clamp, x_clamp   centre of the patch: image[y_clamp - h // 2 : y_clamp - h // 2 + h] is inside the image
--                         unless $pad. Clipped, then truncated, as the reference implementation does.
--      reason             why the observation is dropped; NULL if it is kept
WITH bounds AS (
    SELECT
        fov,
        frames,
        height,
        width,
        CASE WHEN $pad THEN 0 ELSE $patch_height // 2 END AS y_low,
        CASE WHEN $pad THEN 0 ELSE $patch_width // 2 END AS x_low,
        CASE WHEN $pad THEN height - 1 ELSE height - $patch_height + $patch_height // 2 END AS y_high,
        CASE WHEN $pad THEN width - 1 ELSE width - $patch_width + $patch_width // 2 END AS x_high
    FROM fovs
),

clipped AS (
    SELECT
        rows.*,
        frames,
        height,
        width,
        floor(greatest(y_low, least(y, y_high)))::INTEGER AS y_clamp,
        floor(greatest(x_low, least(x, x_high)))::INTEGER AS x_clamp
    FROM rows
    JOIN bounds USING (fov)
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
