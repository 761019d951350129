-- Where the patch of each observation is centred, and which observations have none.
-- In:  rows (row, fov, track_id, t, y, x, z, id, parent_id): the track files
--      fovs (fov, frames, height, width)
--      $patch_height, $patch_width: pixels; $max_shift: pixels or NULL for no limit
-- Row: one observation of the track files.
-- Out: the columns of rows
--      y_clamp, x_clamp   centre of the patch: image[y_clamp - h // 2 : y_clamp - h // 2 + h] is inside the image.
--                         Clipped, then truncated, as the reference implementation does.
--      reason             why the observation is dropped; NULL if it is kept
WITH clipped AS (
    SELECT
        rows.*,
        frames,
        height,
        width,
        greatest($patch_height // 2, least(y, height - $patch_height + $patch_height // 2)) AS y_clip,
        greatest($patch_width // 2, least(x, width - $patch_width + $patch_width // 2)) AS x_clip
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
    floor(y_clip)::INTEGER AS y_clamp,
    floor(x_clip)::INTEGER AS x_clamp,
    CASE
        WHEN t < 0 OR t >= frames THEN 'outside_time'
        WHEN y < 0 OR y >= height OR x < 0 OR x >= width THEN 'outside_image'
        WHEN greatest(abs(y_clip - y), abs(x_clip - x)) > $max_shift THEN 'border_shift'
    END AS reason
FROM clipped
