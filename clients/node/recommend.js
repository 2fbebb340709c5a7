// Asks for items that a user does not expect: in one call, then tier by tier.
//
//   npm ci && node recommend.js CONTEXT_ITEM [ITEM_WATCHED_BEFORE ...]
//
// Where the servers are, and as whom they are called, is told by the environment:
//   PLANNER (127.0.0.1:50051), RETRIEVER (127.0.0.1:50052), TOKEN (none),
//   CA (none: a file of the certificates that are trusted; then TLS is spoken)
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const PROTOS = path.join(__dirname, '..', '..', 'protos');
const DEADLINE_MS = Number(process.env.DEADLINE_MS || 2000);
const WANTED = 10;

// A server that is away is tried again, for about 0.3 s; nothing else is: a full queue is not helped
// by more calls. The same as the Python client's.
const SERVICE_CONFIG = {
  methodConfig: [
    {
      name: [{}],
      retryPolicy: {
        maxAttempts: 3,
        initialBackoff: '0.1s',
        maxBackoff: '1s',
        backoffMultiplier: 2,
        retryableStatusCodes: ['UNAVAILABLE'],
      },
    },
  ],
};

// Field names as the protos have them; 64-bit integers as strings; enums by name.
const { v1 } = grpc.loadPackageDefinition(
  protoLoader.loadSync(
    ['recommender', 'planner', 'retriever'].map((name) => `serendip/v1/${name}.proto`),
    { includeDirs: [PROTOS], keepCase: true, longs: String, enums: String, defaults: true, oneofs: true },
  ),
).serendip;

function client(Service, address) {
  const credentials = process.env.CA
    ? grpc.credentials.createSsl(fs.readFileSync(process.env.CA))
    : grpc.credentials.createInsecure();
  return new Service(address, credentials, {
    'grpc.service_config': JSON.stringify(SERVICE_CONFIG),
    'grpc.max_receive_message_length': 64 << 20,
  });
}

// One unary call. Whoever makes several for one answer gives them one deadline.
function call(service, method, request, deadline) {
  const metadata = new grpc.Metadata();
  if (process.env.TOKEN) metadata.set('authorization', `Bearer ${process.env.TOKEN}`);
  return new Promise((resolve, reject) => {
    service[method](request, metadata, { deadline }, (error, response) =>
      error ? reject(error) : resolve(response),
    );
  });
}

const inMs = (ms) => new Date(Date.now() + ms);

// Recommender: the planner server asks the retriever itself.
async function oneCall(recommender, history, contextItem) {
  const request = { history, context_item_id: contextItem, k: WANTED };
  return call(recommender, 'Recommend', request, inMs(DEADLINE_MS));
}

// The same, tier by tier: plan, then retrieve from the plan's first cluster.
async function twoCalls(planner, retriever, history, contextItem) {
  const deadline = inMs(DEADLINE_MS);
  const planned = await call(planner, 'Plan', { context_item_ids: [contextItem], k: 8 }, deadline);
  const [row] = planned.rows; // one an item, each with a status of its own
  if (row.status && row.status.code !== 0) {
    throw Object.assign(new Error(), { code: row.status.code, details: row.status.message });
  }
  const [first, ...next] = row.plan.clusters.map((cluster) => cluster.node_id);
  const request = {
    history,
    node_ids: [first],
    widen_node_ids: next,
    // The user's own cluster is never widened to; an item outside the tree has none.
    exclude_node_ids: row.plan._own_node_id ? [row.plan.own_node_id] : [],
    tree_version: row.plan.tree_version, // node IDs mean nothing without it
    k: WANTED,
  };
  const { candidates } = await call(retriever, 'Retrieve', request, deadline);
  return { plan: row.plan, source: row.source, candidates };
}

function show(title, { plan, source, candidates }) {
  console.log(`${title}: ${plan.clusters[0].description} (${source})`);
  for (const c of candidates) {
    console.log(`  ${c.item_id}  ${c.score.toFixed(3)}${c.widened ? '  widened' : ''}`);
  }
}

async function main([contextItem, ...watched]) {
  if (!contextItem) {
    console.error('usage: node recommend.js CONTEXT_ITEM [ITEM_WATCHED_BEFORE ...]');
    return 2;
  }
  const history = watched.map((item_id) => ({ item_id }));
  const planner = process.env.PLANNER || '127.0.0.1:50051';
  const clients = [
    client(v1.Recommender, planner),
    client(v1.Planner, planner),
    client(v1.Retriever, process.env.RETRIEVER || '127.0.0.1:50052'),
  ];
  const [recommender, plans, items] = clients;
  try {
    show('in one call', await oneCall(recommender, history, contextItem));
    show('tier by tier', await twoCalls(plans, items, history, contextItem));
    return 0;
  } catch (error) {
    console.error(`${grpc.status[error.code] || 'ERROR'}: ${error.details || error.message}`);
    return 1;
  } finally {
    clients.forEach((one) => one.close());
  }
}

main(process.argv.slice(2)).then((code) => {
  process.exitCode = code;
});
