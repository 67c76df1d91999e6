use super::ModelFolder;
use super::fields::{Fields, parse_object, read_text};
use crate::Result;
use crate::ops::sampling::Sampling;

const FILE: &str = "generation_config.json";
const MAX_BYTES: u64 = 1 << 20;

impl ModelFolder {
    /// How the model's `generation_config.json` has its tokens drawn, with the defaults of `transformers`:
    /// greedy without `do_sample`, and with it a temperature of 1 among the 50 likeliest tokens.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) names the field that is malformed.
    pub fn sampling(&self) -> Result<Sampling> {
        let path = self.path.join(FILE);
        if !path.exists() {
            return Ok(Sampling::greedy());
        }
        let map = parse_object(&path, &read_text(&path, MAX_BYTES)?)?;
        let fields = Fields { path: &path, map: &map };
        if !fields.flag("do_sample")?.unwrap_or(false) {
            return Ok(Sampling::greedy());
        }
        let share = |name: &str| -> Result<Option<f64>> {
            match fields.get(name).map(|value| (value.as_f64(), value)) {
                None => Ok(None),
                Some((Some(share), _)) if (0.0..=1.0).contains(&share) => Ok(Some(share)),
                Some((_, other)) => Err(fields.wrong(name, "a number from 0 to 1", other)),
            }
        };
        Ok(Sampling {
            temperature: fields.positive("temperature")?.unwrap_or(1.0),
            // 0 is how transformers, too, says all of them.
            top_k: match fields.get("top_k").and_then(serde_json::Value::as_u64) {
                Some(0) => 0,
                _ => fields.size("top_k")?.unwrap_or(50),
            },
            top_p: share("top_p")?.filter(|&p| p > 0.0).unwrap_or(1.0),
            min_p: share("min_p")?.unwrap_or(0.0),
            seed: 0,
        })
    }
}
