// The three endpoints of Tenure's benchmark as a careful team would write them with Fastify and pg: schemas for bodies and answers, a verified token that is remembered, prepared
// statements, one round trip for each request. Opening a ticket inserts the ticket and the event for an outbox in one statement.
import cluster from 'node:cluster';
import { createHmac, randomUUID, timingSafeEqual } from 'node:crypto';
import Fastify from 'fastify';
import pg from 'pg';

const { DATABASE_URL, PORT, SECRET, WORKERS = '2' } = process.env;

const schema = `
  create table if not exists tickets (
    tenant_id uuid not null, id uuid not null, version bigint not null, number bigint generated always as identity, subject text not null, body text not null,
    status text not null, priority text not null, channel text not null, requester_id text not null, tags text[] not null,
    created_at timestamptz not null, updated_at timestamptz not null, primary key (tenant_id, id));
  create index if not exists tickets_created on tickets (tenant_id, created_at, id);
  create table if not exists outbox (
    position bigint generated always as identity primary key, tenant_id uuid not null, aggregate_id uuid not null, type text not null, payload jsonb not null,
    recorded_at timestamptz not null);`;

const COLUMNS = 'tenant_id, id, version, number, subject, status, priority, channel, requester_id, tags, created_at, updated_at';

const ticket = {
  type: 'object',
  properties: {
    tenant_id: { type: 'string' }, id: { type: 'string' }, version: { type: 'integer' }, number: { type: 'integer' }, subject: { type: 'string' },
    status: { type: 'string' }, priority: { type: 'string' }, channel: { type: 'string' }, requester_id: { type: 'string' },
    tags: { type: 'array', items: { type: 'string' } }, created_at: { type: 'string' }, updated_at: { type: 'string' },
  },
};

function verified(token) {
  const [header, payload, signature] = token.split('.');
  const made = createHmac('sha256', SECRET).update(`${header}.${payload}`).digest();
  const given = Buffer.from(signature ?? '', 'base64url');
  if (given.length !== made.length || !timingSafeEqual(given, made)) return null;
  return JSON.parse(Buffer.from(payload, 'base64url').toString());
}

async function serve() {
  pg.types.setTypeParser(20, Number);
  const pool = new pg.Pool({ connectionString: DATABASE_URL, max: 16 });
  const app = Fastify({ logger: false });
  const known = new Map();
  app.decorateRequest('caller', null);
  app.addHook('onRequest', async (request, reply) => {
    const token = request.headers.authorization?.slice(7) ?? '';
    let caller = known.get(token);
    if (!caller) {
      caller = verified(token);
      if (!caller) return reply.code(401).send({ error: 'unauthenticated' });
      known.set(token, caller);
    }
    if (caller.exp * 1000 < Date.now()) return reply.code(401).send({ error: 'expired' });
    request.caller = caller;
  });
  app.post('/v1/tickets', {
    schema: {
      body: {
        type: 'object', required: ['subject', 'body'], additionalProperties: false,
        properties: {
          subject: { type: 'string', minLength: 1, maxLength: 200 }, body: { type: 'string', minLength: 1, maxLength: 20000 },
          tags: { type: 'array', maxItems: 20, items: { type: 'string', maxLength: 50 } },
        },
      },
      response: { 201: { type: 'object', properties: { id: { type: 'string' }, version: { type: 'integer' } } } },
    },
  }, async (request, reply) => {
    const { subject, body, tags = [] } = request.body;
    const id = randomUUID();
    await pool.query({
      name: 'open',
      text: `with made as (
               insert into tickets (tenant_id, id, version, subject, body, status, priority, channel, requester_id, tags, created_at, updated_at)
               values ($1, $2, 1, $3, $4, 'new', 'normal', 'api', $5, $6, now(), now()))
             insert into outbox (tenant_id, aggregate_id, type, payload, recorded_at) values ($1, $2, 'ticket.opened', $7, now())`,
      values: [request.caller.tenant, id, subject, body, request.caller.sub, tags, JSON.stringify({ type: 'opened', subject, body, tags })],
    });
    return reply.code(201).send({ id, version: 1 });
  });
  app.get('/v1/tickets/:id', { schema: { response: { 200: ticket } } }, async (request, reply) => {
    const { rows } = await pool.query({
      name: 'one', text: `select ${COLUMNS} from tickets where tenant_id = $1 and id = $2`, values: [request.caller.tenant, request.params.id],
    });
    return rows.length ? rows[0] : reply.code(404).send({ error: 'not found' });
  });
  app.get('/v1/tickets', {
    schema: {
      querystring: { type: 'object', properties: { limit: { type: 'integer', minimum: 1, maximum: 200, default: 50 } } },
      response: { 200: { type: 'object', properties: { data: { type: 'array', items: ticket }, next_cursor: { type: ['string', 'null'] } } } },
    },
  }, async (request) => {
    const { limit } = request.query;
    const { rows } = await pool.query({
      name: 'list', text: `select ${COLUMNS} from tickets where tenant_id = $1 order by created_at desc, id desc limit $2`, values: [request.caller.tenant, limit + 1],
    });
    const more = rows.length > limit;
    const data = more ? rows.slice(0, limit) : rows;
    const last = data.at(-1);
    return { data, next_cursor: more ? Buffer.from(JSON.stringify([last.created_at, last.id])).toString('base64url') : null };
  });
  await app.listen({ port: Number(PORT), host: '127.0.0.1' });
}

if (cluster.isPrimary) {
  const client = new pg.Client({ connectionString: DATABASE_URL });
  await client.connect();
  await client.query(schema);
  await client.end();
  let listening = 0;
  cluster.on('listening', () => {
    listening += 1;
    if (listening === Number(WORKERS)) console.log('listening');
  });
  for (let n = 0; n < Number(WORKERS); n += 1) cluster.fork();
} else {
  await serve();
}
