// Sends one request and prints the flow run record; with --wait, that of the run's end.
//   npm install
//   node create.mjs [--wait] FLOW_ID [IDEMPOTENCY_KEY]
//   node create.mjs [--wait] "FLOW NAME/DEPLOYMENT NAME" [IDEMPOTENCY_KEY] [PARAMETERS, a JSON object]
import amqp from "amqplib";
import { randomUUID } from "node:crypto";

const url = process.env.WORKER_AMQP_URL ?? "amqp://guest:guest@localhost:5672/";
const queue = process.env.WORKER_QUEUE ?? "flow-runs.create";
const wait = process.argv[2] === "--wait";
const [what, idempotencyKey, parameters] = process.argv.slice(wait ? 3 : 2);
// The run gets the deployment's parameters, tags, job variables and work queue.
const isDeployment = what?.includes("/");

const connection = await amqp.connect(url);
const channel = await connection.createConfirmChannel();
channel.on("return", () => {
  console.error(`There is no queue ${queue}: has a worker declared it?`);
  process.exit(1);
});

const waiting = new Map();
await channel.consume("amq.rabbitmq.reply-to", (message) => waiting.get(message.properties.correlationId)?.(message), {
  noAck: true,
});

async function request(type, body) {
  const id = randomUUID();
  const reply = new Promise((resolve) => waiting.set(id, resolve));
  channel.sendToQueue(queue, Buffer.from(JSON.stringify(body)), {
    contentType: "application/json",
    type,
    persistent: true,
    mandatory: true,
    replyTo: "amq.rabbitmq.reply-to",
    correlationId: id,
    messageId: id, // makes a second publish of the same message safe
  });
  await channel.waitForConfirms();
  const { properties, content } = await reply;
  waiting.delete(id);
  return { status: properties.headers.status, type: properties.type, record: JSON.parse(content) };
}

const hasEnded = (record) => ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"].includes(record.state_type);

// The record of the run's end. The workers need WORKER_STATES: without it there is no such exchange.
async function end(id) {
  const states = await connection.createChannel();
  states.on("error", (error) => {
    console.error(`No states are told here: ${error.message}`);
    process.exit(1);
  });
  const mine = await states.assertQueue("", { exclusive: true });
  await states.bindQueue(mine.queue, `${queue}.states`, `*.*.*.${id}`);
  const told = new Promise((resolve) =>
    states.consume(
      mine.queue,
      ({ content }) => {
        const record = JSON.parse(content);
        console.error(record.state_name);
        if (hasEnded(record)) resolve(record);
      },
      { noAck: true },
    ),
  );
  // It may have ended before the queue was bound, so look after that.
  const { status, record } = await request("read_flow_run", { id });
  if (status === 200) return hasEnded(record) ? record : told;
  console.error(`The run can't be read: ${status} ${JSON.stringify(record)}`);
  process.exit(1);
}

const created = await request(isDeployment ? "create_flow_run_from_deployment" : undefined, {
  ...(isDeployment ? { deployment_name: what } : { flow_id: what }),
  idempotency_key: idempotencyKey,
  parameters: parameters ? JSON.parse(parameters) : isDeployment ? {} : { from: "node" },
});
console.log(created.status, created.type);
const record = wait && created.status < 400 ? await end(created.record.id) : created.record;
console.log(JSON.stringify(record, null, 2));
await connection.close();
process.exitCode = created.status < 400 && (!wait || record.state_type === "COMPLETED") ? 0 : 1;
