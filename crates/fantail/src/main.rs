#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    let mut sources = fantail::config::Sources::default();
    sources.variables = std::env::vars().collect();
    let config = fantail::config::Config::load(sources).unwrap();
    let output = fantail::log::init(&config.log).unwrap();
    let server = fantail::server::Server::bind(config).unwrap();
    server.run(&output, |server| {
        let client = server.client_addresses().join(",");
        let control = server.control_address().unwrap().to_string();
        tracing::info!(client, control, "listening");
        tracing::info!("started");
    }).unwrap();
    output.finish();
}
