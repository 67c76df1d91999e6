//! What is saved is what is loaded, byte for byte where nothing had to change.

use std::collections::BTreeMap;
use std::path::Path;

use collimate::models::{
    Head, ModelFolder, NamedTensor, SaveOptions, TensorFile, init_weights, save, write_tensors,
};
use collimate::nn::{DecoderConfig, Weights};
use collimate::{DType, Device};
use half::{bf16, f16};

use super::{fresh, load, message, small, table, values};

/// Every file of a folder.
fn files(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(path).unwrap().map(|e| e.unwrap());
    entries
        .map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()))
        .collect()
}

#[test]
fn every_type_is_saved_as_it_came() {
    for dtype in [DType::F32, DType::F64, DType::BF16, DType::F16] {
        for config in [small(), DecoderConfig { tied: true, qkv_bias: true, ..small() }] {
            let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let (folder, original) = fresh(one.path(), &config, dtype);
            assert_eq!(folder.dtype, dtype);
            let round = |x: f32| match dtype {
                DType::BF16 => bf16::from_f32(x).to_f32(),
                DType::F16 => f16::from_f32(x).to_f32(),
                _ => x,
            };
            let weights = load(one.path()).unwrap();
            let want: Vec<f32> = values(&original).iter().map(|&x| round(x)).collect();
            assert_eq!(values(&weights), want);

            std::fs::write(one.path().join("tokenizer.json"), "{}").unwrap();
            std::fs::write(one.path().join("secrets.txt"), "no").unwrap();
            save(&folder, two.path(), &weights, &SaveOptions::default()).unwrap();
            let mut want = files(one.path());
            want.remove("secrets.txt");
            assert!(files(two.path()) == want);
        }
    }
}

#[test]
fn weights_are_read_in_the_type_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, original) = fresh(dir.path(), &small(), DType::F32);
    let table = table(&small());
    let wide: Weights<f64> = folder.load_weights(&table, &Device::Cpu).unwrap();
    let narrow: Weights<bf16> = folder.load_weights(&table, &Device::Cpu).unwrap();
    for (i, &x) in values(&original).iter().enumerate() {
        assert_eq!(wide.arena().as_slice().unwrap()[i], x as f64);
        assert_eq!(narrow.arena().as_slice().unwrap()[i], bf16::from_f32(x));
    }
}

#[test]
fn only_the_type_in_config_json_changes() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fresh(one.path(), &small(), DType::F32);
    let path = one.path().join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text.replacen('{', "{\n  \"zeta\": 1e-05,\n  \"alpha\": [1, null],", 1);
    std::fs::write(&path, &text).unwrap();
    let folder = ModelFolder::open(one.path()).unwrap();
    let weights = load(one.path()).unwrap();
    let options = SaveOptions { dtype: Some(DType::BF16), ..SaveOptions::default() };
    save(&folder, two.path(), &weights, &options).unwrap();
    let saved = ModelFolder::open(two.path()).unwrap();
    assert_eq!(saved.dtype, DType::BF16);
    let keys = |folder: &ModelFolder| folder.json.keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&saved), keys(&folder));
    let changed: Vec<_> =
        folder.json.iter().filter(|(key, value)| saved.json[*key] != **value).collect();
    assert_eq!(changed.len(), 1);
    assert_eq!(saved.json["torch_dtype"], "bfloat16");
    // Where the type is right the text is kept to the letter.
    save(&folder, two.path(), &weights, &SaveOptions::default()).unwrap();
    assert_eq!(std::fs::read_to_string(two.path().join("config.json")).unwrap(), text);
}

#[test]
fn many_files_are_one_model() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (folder, original) = fresh(one.path(), &small(), DType::F32);
    let options = |shard_bytes| SaveOptions { shard_bytes, ..SaveOptions::default() };
    save(&folder, two.path(), &original, &options(1000)).unwrap();
    let names: Vec<_> = files(two.path()).into_keys().collect();
    assert!(names.iter().any(|n| n.starts_with("model-00002-of-000")), "{names:?}");
    assert!(names.contains(&"model.safetensors.index.json".to_string()));
    assert_eq!(values(&load(two.path()).unwrap()), values(&original));
    // A smaller save removes what it replaces, and the other way round.
    save(&folder, two.path(), &original, &options(2000)).unwrap();
    assert_eq!(values(&load(two.path()).unwrap()), values(&original));
    let fewer = files(two.path()).len();
    assert!(fewer < names.len());
    save(&folder, two.path(), &original, &options(u64::MAX)).unwrap();
    assert!(files(two.path()) == files(one.path()));
    save(&folder, two.path(), &original, &options(2000)).unwrap();
    assert_eq!(files(two.path()).len(), fewer);
    assert_eq!(values(&load(two.path()).unwrap()), values(&original));
}

#[test]
fn a_tied_head_is_read_under_either_name() {
    let config = DecoderConfig { tied: true, ..small() };
    let dir = tempfile::tempdir().unwrap();
    let (_, original) = fresh(dir.path(), &config, DType::F32);
    let path = dir.path().join("model.safetensors");
    let embedding = "model.embed_tokens.weight";
    let tensors: Vec<(String, Vec<usize>, Vec<f32>)> = {
        let file = TensorFile::open(&path).unwrap();
        let read = |t: &collimate::models::TensorInfo| {
            let mut values = vec![0.0f32; t.values()];
            file.read(&t.name, &mut values).unwrap();
            (t.name.clone(), t.shape.clone(), values)
        };
        file.tensors().iter().map(read).collect()
    };
    let write = |embedding_too: bool, head: &[f32]| {
        let kept = tensors.iter().filter(|t| t.0 != embedding || embedding_too);
        let kept =
            kept.map(|(name, shape, values)| NamedTensor { name, shape: shape.clone(), values });
        let head = NamedTensor { name: "lm_head.weight", shape: vec![13, 8], values: head };
        write_tensors(&path, kept.chain([head]), DType::F32, &[]).unwrap();
    };
    let mut head = tensors.iter().find(|t| t.0 == embedding).unwrap().2.clone();
    for both in [false, true] {
        write(both, &head);
        assert_eq!(values(&load(dir.path()).unwrap()), values(&original));
    }
    head[40] += 1.0;
    write(true, &head);
    assert!(message(load(dir.path())).contains("tie_word_embeddings"));
}

#[test]
fn a_reward_model_is_saved_as_one() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (folder, _) = fresh(one.path(), &small(), DType::F32);
    let no_head = DecoderConfig { tied: true, ..small() };
    let mut with_score = (*table(&no_head)).clone();
    with_score.matrix("score.weight", 1, 8);
    let with_score = std::sync::Arc::new(with_score);
    let weights = init_weights::<f32>(&with_score, 1, &Device::Cpu).unwrap();
    let options = SaveOptions { head: Some(Head::Score), ..SaveOptions::default() };
    save(&folder, two.path(), &weights, &options).unwrap();
    let saved = ModelFolder::open(two.path()).unwrap();
    assert_eq!(saved.head, Head::Score);
    assert_eq!(saved.json["architectures"][0], "LlamaForSequenceClassification");
    let loaded: Weights<f32> = saved.load_weights(&with_score, &Device::Cpu).unwrap();
    assert_eq!(values(&loaded), values(&weights));
}

#[test]
fn tensors_of_a_checkpoint_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("optimizer.safetensors");
    let m: Vec<f32> = (0..700_001).map(|i| (i as f32).sin()).collect();
    let tensors = || {
        let v = NamedTensor { name: "v", shape: vec![3], values: &m[..3] };
        let m = NamedTensor { name: "m", shape: vec![m.len()], values: &m };
        [v, m, NamedTensor { name: "nothing", shape: vec![0, 4], values: &[] }]
    };
    write_tensors(&path, tensors(), DType::F32, &[("step", "7")]).unwrap();
    let first = std::fs::read(&path).unwrap();
    assert_eq!(u64::from_le_bytes(first[..8].try_into().unwrap()) % 8, 0);
    let mut reversed = tensors();
    reversed.reverse();
    write_tensors(&path, reversed, DType::F32, &[("step", "7")]).unwrap();
    assert!(std::fs::read(&path).unwrap() == first);

    let file = TensorFile::open(&path).unwrap();
    assert_eq!(file.metadata()["step"], "7");
    let mut read = vec![0.0f32; m.len()];
    file.read("m", &mut read).unwrap();
    assert_eq!(read, m);
    file.read::<f32>("nothing", &mut []).unwrap();
    file.read_range(file.info("m").unwrap(), 100, &mut read[..5]).unwrap();
    assert_eq!(read[..5], m[100..105]);
    assert!(message(file.read("m", &mut read[..9])).contains("700001"));
    assert!(message(file.read("g", &mut read)).contains("`g` is missing"));
    let end = file.info("m").unwrap();
    assert!(file.read_range(end, m.len(), &mut read[..1]).is_err());

    write_tensors(&path, tensors(), DType::BF16, &[]).unwrap();
    TensorFile::open(&path).unwrap().read("m", &mut read).unwrap();
    assert!(read.iter().zip(&m).all(|(r, m)| *r == bf16::from_f32(*m).to_f32()));

    let wrong = NamedTensor { name: "x", shape: vec![2, 2], values: &m[..3] };
    assert!(write_tensors(&path, [wrong], DType::F32, &[]).is_err());
    let twice = [tensors()[0].clone(), tensors()[0].clone()];
    assert!(message(write_tensors(&path, twice, DType::F32, &[])).contains("two tensors"));
}

#[test]
fn a_write_that_fails_leaves_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, "old").unwrap();
    let result = collimate::models::write_atomically(&path, |out| {
        out.write_all(b"half").unwrap();
        Err(collimate::Error::NonFinite("stop".into()))
    });
    assert_eq!(message(result), "stop");
    assert_eq!(files(dir.path()), BTreeMap::from([("file".into(), b"old".to_vec())]));
}

#[test]
fn new_weights_depend_on_names_and_seed_alone() {
    let a = init_weights::<f32>(&table(&small()), 3, &Device::Cpu).unwrap();
    let b = init_weights::<f32>(&table(&small()), 3, &Device::Cpu).unwrap();
    let c = init_weights::<f32>(&table(&small()), 4, &Device::Cpu).unwrap();
    assert_eq!(values(&a), values(&b));
    assert!(values(&a) != values(&c));
}
