-- Where the patch of each observation is centred, and which observations have none.
-- In:  rows (fov, t, y, x, …): the track files
--      fovs (fov, frames, height, width, the least and greatest centre of a patch: y_low, y_high, x_low, x_high, and how
--      many pixels it may be moved at most to larger and to smaller y and x: y_forth, y_back, x_forth, x_back)
-- Row: one observation of the track files.
-- Out: the columns of rows
--      y_clamp, x_clamp   centre of the patch. Clipped, then truncated, as the reference implementation does.
--      reason             why the observation is dropped; NULL if it is kept
WITH clipped AS (
    SELECT
        rows.*,
        floor(greatest(y_low, least(y, y_high)))::INTEGER AS y_clamp,
        floor(greatest(x_low, least(x, x_high)))::INTEGER AS x_clamp,
        t < 0 OR t >= frames AS is_outside_time,
        y < 0 OR y >= height OR x < 0 OR x >= width AS is_outside_image,
        y_forth,
        y_back,
        x_forth,
        x_back
    FROM rows
    JOIN fovs USING (fov)
)
SELECT
    clipped.* EXCLUDE (is_outside_time, is_outside_image, y_forth, y_back, x_forth, x_back),
    CASE
        WHEN is_outside_time THEN 'outside_time'
        WHEN is_outside_image THEN 'outside_image'
        WHEN y_clamp - floor(y) NOT BETWEEN -y_back AND y_forth THEN 'near_border'
        WHEN x_clamp - floor(x) NOT BETWEEN -x_back AND x_forth THEN 'near_border'
    END AS reason
FROM clipped
