//! Where a model's chat template stands.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Map, Value as Json};

use super::engine::Engine;
use super::{ChatTemplate, MAX_TEMPLATE_BYTES};
use crate::data::special::{read_bounded, read_json};
use crate::{Error, Result};

/// The file of a model folder that holds its template.
const FILE: &str = "chat_template.jinja";
const TOKENIZER: &str = "tokenizer_config.json";
/// The template that is taken where nothing else is said, and the one for conversations with tools.
const NAMES: [&str; 2] = ["default", "tool_use"];

/// The chat template of a model, read and compiled when the first conversation asks for it.
#[derive(Debug)]
pub struct Chat {
    folder: PathBuf,
    given: Option<String>,
    template: OnceLock<ChatTemplate>,
}

impl Chat {
    /// The template of the model in `folder`, or one that was given: a file, the name of one of the
    /// model's own, or the text itself.
    pub fn new(folder: impl AsRef<Path>, given: Option<&str>) -> Self {
        let folder = folder.as_ref().to_path_buf();
        Chat { folder, given: given.map(String::from), template: OnceLock::new() }
    }

    /// The template.
    ///
    /// # Errors
    /// [`Error::File`] where there is none, or where its file cannot be understood.
    pub fn template(&self) -> Result<&ChatTemplate> {
        if let Some(template) = self.template.get() {
            return Ok(template);
        }
        let sources = self.sources()?;
        let compile = |(path, text): &(PathBuf, String)| {
            Engine::new(text, None).map_err(|e| Error::file(path, format!("chat template: {e}")))
        };
        let [main, with_tools] = &sources;
        let Some(main) = main else {
            let message = "the model has no chat template (chat_template.jinja, or `chat_template` \
                           in tokenizer_config.json), which conversations need: give one with \
                           --chat-template FILE";
            return Err(Error::file(&self.folder, message));
        };
        let template = ChatTemplate {
            engine: compile(main)?,
            with_tools: with_tools.as_ref().map(compile).transpose()?,
            special: special_tokens(&self.folder)?,
        };
        Ok(self.template.get_or_init(|| template))
    }

    /// The text of the template that was given: what a model that was trained with it is saved with.
    ///
    /// # Errors
    /// As [`Chat::template`].
    pub fn given(&self) -> Result<Option<String>> {
        match self.given {
            None => Ok(None),
            Some(_) => Ok(self.sources()?.into_iter().next().flatten().map(|(_, text)| text)),
        }
    }

    /// Whether texts that were made depend on the time.
    pub fn asked_time(&self) -> bool {
        self.template.get().is_some_and(ChatTemplate::asked_time)
    }

    /// The templates by [`NAMES`], each with the file that it is from.
    fn sources(&self) -> Result<[Option<(PathBuf, String)>; 2]> {
        let Some(given) = &self.given else { return own(&self.folder, &NAMES) };
        let path = Path::new(given);
        // A template has braces and line ends; a path may have neither file nor either of them.
        if !given.contains('{') {
            if path.is_file() {
                return Ok([Some((path.into(), text_of(path)?)), None]);
            }
            if path.is_dir() {
                return own(path, &NAMES);
            }
            if let [Some(named), _] = own(&self.folder, &[given, given])? {
                return Ok([Some(named), None]);
            }
            let expected =
                "a file, a folder, the text of a template, or the name of one of the model's";
            return Err(Error::setting("chat_template", expected, given));
        }
        Ok([Some(("--chat-template".into(), given.clone())), None])
    }
}

/// The templates of a folder by these names. A file of its own goes before what the tokenizer says.
fn own(folder: &Path, names: &[&str; 2]) -> Result<[Option<(PathBuf, String)>; 2]> {
    let file = folder.join(FILE);
    let alone = read_bounded(&file, MAX_TEMPLATE_BYTES as u64)?;
    if let (Some(bytes), "default") = (alone, names[0]) {
        let more = folder.join("additional_chat_templates").join(format!("{}.jinja", names[1]));
        let more = match more.is_file() {
            true => Some((more.clone(), text_of(&more)?)),
            false => None,
        };
        return Ok([Some((file.clone(), utf8(&file, bytes)?)), more]);
    }
    let path = folder.join(TOKENIZER);
    let json = read_json(&path)?.unwrap_or_default();
    let bad = |got: &Json| {
        let expected = "`chat_template`: expected a text, or a list of {name, template}";
        Error::file(&path, format!("{expected}, got {}", crate::data::fields::kind(got)))
    };
    let named = |name: &str| -> Result<Option<(PathBuf, String)>> {
        match json.get("chat_template") {
            None | Some(Json::Null) => Ok(None),
            Some(Json::String(text)) => {
                Ok((name == "default").then(|| (path.clone(), text.clone())))
            }
            Some(got @ Json::Array(list)) => {
                let entry = list.iter().find(|entry| entry["name"] == name);
                let text = entry.map(|entry| entry["template"].as_str().ok_or_else(|| bad(got)));
                Ok(text.transpose()?.map(|text| (path.clone(), text.to_string())))
            }
            Some(got @ Json::Object(map)) => match map.get(name) {
                None => Ok(None),
                Some(Json::String(text)) => Ok(Some((path.clone(), text.clone()))),
                Some(_) => Err(bad(got)),
            },
            Some(got) => Err(bad(got)),
        }
    };
    Ok([named(names[0])?, named(names[1])?])
}

fn text_of(path: &Path) -> Result<String> {
    let bytes = read_bounded(path, MAX_TEMPLATE_BYTES as u64)?;
    utf8(
        path,
        bytes.ok_or_else(|| Error::file(path, "expected a chat template, got no such file"))?,
    )
}

fn utf8(path: &Path, bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|_| Error::file(path, "expected UTF-8"))
}

/// The special tokens that a template may name, by the names of `tokenizer_config.json`.
fn special_tokens(folder: &Path) -> Result<Map<String, Json>> {
    let mut tokens = Map::new();
    for name in [TOKENIZER, "special_tokens_map.json"] {
        let json = read_json(&folder.join(name))?.unwrap_or_default();
        let Json::Object(own) = json else { continue };
        for (key, value) in own.iter().filter(|(key, _)| key.ends_with("_token")) {
            let text = value.as_str().or_else(|| value.get("content")?.as_str());
            if let (Some(text), false) = (text, tokens.contains_key(key)) {
                tokens.insert(key.clone(), text.into());
            }
        }
    }
    Ok(tokens)
}
