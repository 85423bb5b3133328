use models::Config;

use super::*;

fn model(config: &str) -> Model {
    Model::random(Config::from_json(config).unwrap(), 0).unwrap()
}
